"""A web server on this machine that answers as a test says, and keeps count."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Answers GET with what `answers` has: a path's list of (status, headers, body), the last of them for ever.

    `requests` counts requests by path, `headers` has the last request's by path, and `most_at_once` is the largest
    number of requests that were in progress at the same time.
    """

    def __init__(self):
        self.answers, self.requests, self.headers = {}, Counter(), {}
        self.most_at_once = self._now = 0
        self.lock = threading.Lock()
        self.before_answer = lambda path: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with outer.lock:
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                    number = outer.requests[self.path]
                    outer.requests[self.path] += 1
                    outer.headers[self.path] = dict(self.headers)
                outer.before_answer(self.path)
                with outer.lock:
                    outer._now -= 1
                of_path = outer.answers.get(self.path, [(404, {}, b"nothing here")])
                with contextlib.suppress(ConnectionError):
                    self.answer(*of_path[min(number, len(of_path) - 1)])

            def answer(self, status, headers, body):
                wanted = self.headers.get("Range", "") if headers.get("Accept-Ranges") else ""
                headers = {"Content-Length": str(len(body)), **headers}
                start, stop = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, 0)
                if wanted and start >= len(body):
                    headers |= {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}
                    status, body = 416, b""
                elif wanted:
                    status, part = 206, body[start : stop + 1]
                    headers |= {"Content-Range": f"bytes {start}-{stop}/{len(body)}", "Content-Length": str(len(part))}
                    body = part
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                if int(headers["Content-Length"]) != len(body):
                    self.close_connection = True

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def url(self, path):
        return f"http://{self.host}{path}"

    def put(self, path, *answers):
        """Answer a path with these in turn; plain bytes are a good answer, a number is a status."""
        whole = {int: lambda status: (status, {}, b"no"), bytes: lambda body: (200, {}, body), tuple: lambda all_: all_}
        self.answers[path] = [whole[type(answer)](answer) for answer in answers]
        return self.url(path)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
