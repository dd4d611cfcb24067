"""The simulated engine as the worker of a drill: starts in a second, and serves the versions it is asked for.

    python -m tests.support.drill_engine --port 9000

It has no weights. So drills on it say nothing of weight loads, but everything of the log.
"""

import argparse

from aiohttp import web

from tests.support.simulated_engine import SimulatedEngine


class DrillEngine(SimulatedEngine):
    """Adds the routes that the stack and the watch look at."""

    def application(self):
        application = super().application()
        application.router.add_get("/asyncflow/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _status(self, request):
        return web.json_response({"version": self.version})

    async def _metrics(self, request):
        asked = sum(self.fixed_tokens * seen.body["sampling_params"]["n"] for seen in self.requests)
        return web.Response(text=f"vllm:generation_tokens_total {asked}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    engine = DrillEngine(fixed_tokens=24, mean_s=0.1, obliging=True)
    web.run_app(engine.application(), host=given.host, port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
