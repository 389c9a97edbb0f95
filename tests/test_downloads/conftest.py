"""Archives to order, and a web server that breaks off, resumes or refuses to."""

import http.server
import io
import json
import tarfile
import threading
import zipfile

import pytest

from pixelsail_mm.downloads import transfer


@pytest.fixture
def pack(tmp_path):
    """Write a tar.gz or (by its name) a zip of files (dicts as JSON) and of tar or zip members."""

    def pack(files, *members, name='x.tar.gz'):
        path = tmp_path / name
        files = {
            name: json.dumps(content).encode() if isinstance(content, dict) else content
            for name, content in files.items()
        }
        if name.endswith('.tar.gz'):
            with tarfile.open(path, 'w:gz') as archive:
                for member_name, content in files.items():
                    member = tarfile.TarInfo(member_name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                for member in members:
                    archive.addfile(member, io.BytesIO(bytes(member.size)))
        else:
            with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
                for member_name, content in files.items():
                    archive.writestr(member_name, content)
                for member in members:
                    archive.writestr(member, b'')
        return path

    return pack


class Files(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` (path -> content); notes ``Range`` headers in ``server.asked``.

    ``server.cuts``: so many answers still end after half of what they announce; without
    ``server.lengths`` they announce nothing. ``server.redirects``: path -> other address;
    ``server.logins``: host and login of every request; ``server.encodings``: what it accepts.
    """

    protocol_version = 'HTTP/1.1'

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server = self.server
        server.encodings.append(self.headers['Accept-Encoding'])
        server.logins.append((self.headers['Host'], self.headers.get('Authorization')))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header('Location', server.redirects[self.path])
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = server.files.get(self.path.partition('?')[0])
        if content is None:
            self.send_response(404)
            # How the hub tells what is missing.
            self.send_header('X-Error-Code', server.errors.get(self.path.partition('?')[0], ''))
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        wanted = self.headers.get('Range')
        if body:
            server.asked.append((self.path, wanted))
        begin = 0
        if wanted and server.ranges:
            begin = int(wanted.removeprefix('bytes=').rstrip('-'))
            if begin >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header('Content-Range', f'bytes {begin}-{len(content) - 1}/{len(content)}')
        if server.lengths:
            self.send_header('Content-Length', str(len(content) - begin))
        else:
            self.close_connection = True
        for name, value in server.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        part = content[begin:]
        if server.cuts and len(content) > server.cut_above:
            server.cuts -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """The server; ``server.url`` is its address."""
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(transfer, '_RETRIES', 0)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Files) as server:
        server.daemon_threads = True
        server.files, server.headers, server.errors, server.asked = {}, {}, {}, []
        server.redirects, server.logins, server.encodings = {}, [], []
        server.cuts, server.cut_above, server.ranges, server.lengths = 0, 0, True, True
        server.url = f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
