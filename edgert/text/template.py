"""Chat templates: messages to text, as transformers' apply_chat_template renders them.

The template is the model's own and foreign code: it runs in `sandbox.LimitedEnvironment`. There is
no fallback: a model without a template does not chat. Control tokens (special tokens, and added
tokens that the template itself writes) inside messages are marked on the way in and come out as
plain segments, so that no message can forge the template's own tokens; text without any is
untouched, and the tokens are then exactly transformers'.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from .. import limits
from ..errors import BundleError, EdgertError, RequestError
from .sandbox import Budget, LimitedEnvironment, LimitError
from .segments import MARKS, Segment, mark, pattern_of, split_marked
from .template_data import Chat
from .template_globals import GLOBALS, Rejected, tojson
from .template_use import REASONING, TemplateUse

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from .tokenizer import Tokenizer

FILE = "<chat template>"


class ChatTemplate:
    """A compiled template. Safe to share between threads; one renders at a time."""

    def __init__(
        self,
        source: str,
        special: Mapping[str, str] | None = None,
        *,
        control: Iterable[str] = (),
        added: Iterable[str] = (),
        where: str = "chat_template.jinja",
        with_tools: ChatTemplate | None = None,
    ) -> None:
        """special: bos_token, eos_token, ... for the template. control: token texts that are always
        the template's alone; added: other added tokens, which are when the template writes them.
        with_tools: the template of chats with tools, where it is another one.
        Raises BundleError for templates that are too long, wrong, or beyond the sandbox."""
        self._where, self._special = where, dict(special or {})
        self._with_tools = with_tools
        if len(source.encode("utf-8", "replace")) > limits.TEMPLATE_BYTES:
            raise self._bad(f"more than {limits.TEMPLATE_BYTES} bytes", None)
        self._lock = threading.Lock()
        self._environment = LimitedEnvironment({"tojson": tojson}, GLOBALS)
        tree = self._compile(source)
        self._use = TemplateUse(tree, where)
        always = {token for token in control if token}
        self._control = pattern_of(always | _written(tree, added))
        self._said = pattern_of(always)  # an assistant's message may hold <think> and similar

    @classmethod
    def from_bundle(cls, bundle: Bundle, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The bundle's template, or None when it has none; raises BundleError."""
        text, made = bundle.manifest.text_spec, None
        for file in (text.tool_template, text.chat_template):
            if file is not None:
                made = cls(
                    _source(bundle, file),
                    text.special,
                    control=tokenizer.control,
                    added=tokenizer.vocabulary.added,
                    where=str(bundle.path_of(file)),
                    with_tools=made,
                )
        return made

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[Segment]:
        """The chat as text segments, in order.

        messages: {"role", "content", ...}; keys whose value is None are left out. variables: for
        the template, such as enable_thinking. Raises RequestError for messages that are none, that
        the template rejects (with its own reason), or that drive it past its limits.
        """
        given = {
            **variables,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._for(tools)._render(Chat.of(messages, tools, given))

    def check_use(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> None:
        """Raises RequestError for tools, variables and parts of messages that the template never
        reads: `render` would lose them without a word. For what `render` takes."""
        self.render_checked(messages, tools, variables)

    def render_checked(
        self, messages: Sequence[Any], tools: Sequence[Any] | None, variables: Mapping[str, Any]
    ) -> list[Segment]:
        """`render` and `check_use` of the same data."""
        chosen, chat = self._for(tools), Chat.of(messages, tools, variables)
        whole = chosen._render(chat)
        again = lambda changed: chosen._render(chat._replace(messages=list(changed)))
        chosen._use.check(chat, whole, again)
        return whole

    def _for(self, tools: object) -> ChatTemplate:
        """The template of chats with these tools."""
        return self if tools is None or self._with_tools is None else self._with_tools

    def _render(self, chat: Chat) -> list[Segment]:
        text = self._run(
            {
                "documents": None,
                "add_generation_prompt": True,
                **self._special,
                **self._marked(chat.variables, self._control),
                "messages": [self._message(message) for message in chat.messages],
                "tools": self._marked(chat.tools, self._control),
            }
        )
        return split_marked(text, self._control)

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        thought = next((message[key] for key in REASONING if key in message), None)
        if thought is not None:
            message = {"thinking": thought, **message, "reasoning_content": thought}
        control = self._said if message["role"] == "assistant" else self._control
        marked: dict[str, Any] = self._marked(message, control)
        return marked

    def _marked(self, value: Any, control: re.Pattern[str]) -> Any:
        """The value with control tokens in its texts wrapped in START and END."""
        if isinstance(value, str):
            return mark(value, control)
        if isinstance(value, dict):
            marked = self._marked
            return {marked(key, control): marked(item, control) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._marked(item, control) for item in value)
        return value

    def _compile(self, source: str) -> nodes.Template:
        environment = self._environment
        try:
            tree = environment.prepare(source)
            code = environment.compile(tree, filename=FILE)
            self._template = environment.template_class.from_code(
                environment, code, environment.make_globals(None), None
            )
        except TemplateSyntaxError as error:
            raise self._bad(str(error.message), error.lineno) from None
        except (TemplateError, LimitError, RecursionError, SyntaxError, MemoryError) as error:
            raise self._bad(f"{type(error).__name__}: {error}", None) from None
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            raise self._bad(f"{type(error).__name__}: {error}", None) from None
        return tree

    def _run(self, variables: Mapping[str, Any]) -> str:
        """Render with a fresh budget; every way to fail is a RequestError with the line."""
        with self._lock:
            self._environment.budget = Budget()
            pieces, size = [], 0
            try:
                for piece in self._template.generate(variables):
                    pieces.append(piece)
                    size += len(piece)
                    if size > limits.TEMPLATE_OUTPUT_BYTES:
                        raise LimitError(f"output beyond {limits.TEMPLATE_OUTPUT_BYTES} characters")
            except EdgertError:
                raise
            except Exception as error:
                raise self._failed(error) from None
            finally:
                self._environment.budget = Budget()
        return "".join(pieces)

    def _failed(self, error: Exception) -> RequestError:
        line, message = _line_of(error), MARKS.sub("", str(error))[:300]
        if isinstance(error, Rejected):
            return RequestError(
                f"the chat template rejects these messages: {message}",
                code="template-rejected",
                hint=f"line {line} of {self._where} says so; change the messages",
            )
        code, hint = "template", "check the roles and contents of the messages"
        if isinstance(error, (LimitError, RecursionError, MemoryError)):
            code, hint = (
                "template-limit",
                "shorten the messages, or the template is at fault",
            )
        elif isinstance(error, SecurityError):
            code, hint = "template-sandbox", "the model's template reaches for what it must not"
        place = self._where if line is None else f"{self._where}, line {line}"
        return RequestError(
            f"{place}: {type(error).__name__}: {message}",
            code=code,
            hint=hint,
            line=line,
        )

    def _bad(self, message: str, line: int | None) -> BundleError:
        place = "" if line is None else f", line {line}"
        return BundleError(
            f"{self._where}{place}: {message}",
            code="template",
            hint="the model's chat template cannot be used; give the bundle another one",
            line=line,
        )


def _source(bundle: Bundle, file: str) -> str:
    """A template of a bundle; raises BundleError."""
    try:
        return bundle.read(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{bundle.path_of(file)}: no UTF-8: {error}",
            code="template",
            hint="convert the model again",
        ) from None


def _written(tree: nodes.Template, added: Iterable[str]) -> set[str]:
    """Added tokens in the template's own text, except blank ones."""
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)}
    whole = "\0".join(sorted(texts))
    return {token for token in added if token in whole and not token.isspace()}


def _line_of(error: BaseException) -> int | None:
    """The template line where an error arose (jinja2 rewrites tracebacks to template lines)."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
