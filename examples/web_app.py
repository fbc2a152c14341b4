"""A model inside a web application: answers are streamed as they are written.

    python examples/web_app.py [PORT [BUNDLE]]
    curl -N -d '{"messages": [{"role": "user", "content": "Hello!"}]}' http://127.0.0.1:8000/chat

One model serves all threads at the same time. A client that goes away stops its answer. The app
listens on this machine only and answers no other Host, so that a web page elsewhere cannot reach
it. A public service needs more: users, quotas, and an answer for when the model's queue is full.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import edgert
from edgert.demo import demo_bundle

BODY_BYTES = 1 << 16


class Chat(BaseHTTPRequestHandler):
    """POST /chat with {"messages": [...]}: plain text, piece by piece, until the end."""

    model: edgert.TextModel

    def do_POST(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        size = self.headers.get("Content-Length", "")
        if self.path != "/chat" or host not in ("127.0.0.1", "localhost"):
            return self.send_error(404)
        if not size.isdecimal() or int(size) > BODY_BYTES:
            return self.send_error(413)
        try:
            messages = json.loads(self.rfile.read(int(size)))["messages"]
            stream = self.model.stream_chat(messages, max_tokens=200, temperature=0)
        except (ValueError, TypeError, KeyError, edgert.RequestError) as error:
            return self.send_error(400, explain=str(error))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        with stream:
            for piece in stream:
                self.wfile.write(piece.encode())
                self.wfile.flush()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with edgert.load(sys.argv[2] if len(sys.argv) > 2 else demo_bundle()) as Chat.model:
        with ThreadingHTTPServer(("127.0.0.1", port), Chat) as server:
            print(f"http://127.0.0.1:{server.server_port}/chat", flush=True)
            server.serve_forever()
