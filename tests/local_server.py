"""A server on this machine in place of those that files are downloaded from."""

import base64
import http.server
import io
import threading

import numpy as np


def npz(size=100_000):
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    return buffer.getvalue()


class Server:
    """A server with one content, or one for each file name; it may send less, know no ranges, or state an MD5 sum."""

    def __init__(self, content, sent=None, ranges=True, md5=None):
        self.content, self.sent, self.ranges, self.md5 = content, sent, ranges, md5
        self.asked = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.headers.get("Range"))
                server.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def answer(self, handler):
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        content = self.content if isinstance(self.content, bytes) else self.content[handler.path.rpartition("/")[2]]
        if "missing" in handler.path or (start and start >= len(content)):
            handler.send_response(404 if "missing" in handler.path else 416)
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if self.md5 is not None:
            handler.send_header("Content-MD5", base64.b64encode(self.md5).decode())
        handler.end_headers()
        handler.wfile.write(content[start : self.sent])

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/some/folder"
        return self

    def __exit__(self, *error):
        self.httpd.shutdown()
        self.httpd.server_close()
