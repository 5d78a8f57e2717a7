#!/usr/bin/env python3
"""python3's own http.server, and two answers more: PUT says the SHA-256 of the body, /whoami says who asks."""
import hashlib
import sys
import urllib.parse
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import functools
import socket


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if urllib.parse.urlparse(self.path).path == "/whoami":
            return self.answer(self.client_address[0].removeprefix("::ffff:"))
        return super().do_GET()

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                return
            digest.update(piece)
            left -= len(piece)
        self.answer(digest.hexdigest())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        if self.address_family == socket.AF_INET6 and self.server_address[0] == "::":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return super().server_bind()


address, port, directory = sys.argv[1:]
Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
Server((address, int(port)), functools.partial(Handler, directory=directory)).serve_forever()
