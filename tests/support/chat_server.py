"""A simulated route for chats as OpenAI's, which says its lines one after another and keeps what it was asked."""

import contextlib

from aiohttp import web


class ChatServer:
    """A line is a text to say, a status to refuse with, or a whole body."""

    def __init__(self, *lines):
        self._lines = list(lines)
        self.requests = []
        """Body and headers of each request."""
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self):
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _complete(self, request):
        self.requests.append((await request.json(), request.headers))
        line = self._lines.pop(0)
        if isinstance(line, int):
            return web.Response(status=line, headers={"Location": "/elsewhere"})
        return web.json_response({"choices": [{"message": {"content": line}}]} if isinstance(line, str) else line)
