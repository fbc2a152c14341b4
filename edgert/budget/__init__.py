"""Does a model meet its budget on a device: limits, measurements that go on until they decide, and
verdicts: pass, fail, undecided."""
