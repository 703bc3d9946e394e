"""Answers HTTP requests for completions, in OpenAI's shape, from a SavedModel that --export wrote.

    python -m interop.serve exported/mine --port 8000

`GET /health`, `GET /v1/models`, `POST /v1/completions`, and a page to try it at `/`.
"""

import argparse
import socket
import sys

from configs.command_line import Parser, quiet_libraries, status_of
from configs.errors import UserError
from configs.flags import number


def make_parser() -> Parser:
    """The parser of the flags."""
    count = number(int, "a whole number, 1 or more", lambda n: n >= 1)
    parser = Parser(prog="python -m interop.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="what main.py --export has written")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen at; 0.0.0.0 is all, for whoever can reach this "
                             "machine, as there are no passwords (127.0.0.1)")
    parser.add_argument("--port", metavar="N", default=8000,
                        type=number(int, "from 0 to 65535", lambda n: 0 <= n < 65536),
                        help="port; 0 takes a free one (8000)")
    parser.add_argument("--name", help="the model's name in requests (that of the run)")
    parser.add_argument("--max_body", metavar="BYTES", type=count, default=1 << 20,
                        help="most bytes of a request (1048576)")
    parser.add_argument("--max_samples", metavar="N", type=count, default=64,
                        help="most samples of a request: its prompts times n (64)")
    parser.add_argument("--max_waiting", metavar="N", type=count, default=256,
                        help="most samples that wait for a row, over all requests (256)")
    parser.add_argument("--max_seconds", metavar="S", default=600.0,
                        type=number(float, "a number above 0", lambda s: 0 < s < float("inf")),
                        help="how long a request may take, waiting included (600)")
    return parser


def serve(args: argparse.Namespace) -> None:
    """Serves until it is interrupted.

    Raises:
      UserError: the model cannot be loaded, the address cannot be had, or a package is missing.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError("serving needs uvicorn and starlette: pip install -r "
                        "requirements-serve.txt") from None
    from interop.completions_app import Limits, make_app
    from interop.serving_engine import Engine

    limits = Limits(args.max_body, args.max_samples, args.max_waiting, args.max_seconds)
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.host, args.port))
            listener.listen(128)
        except OSError as error:
            raise UserError(f"--host {args.host} --port {args.port}: {error.strerror or error}; "
                            "give others") from None
        engine = Engine(args.directory.rstrip("/"), limits.waiting)
        name = args.name or engine.facts["name"]
        local = args.host in ("127.0.0.1", "localhost")
        app = make_app(engine, name, limits, ("127.0.0.1", "localhost") if local else ("*",))
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {name} at http://{host}:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False,
                                               lifespan="off", timeout_graceful_shutdown=5))
        try:
            server.run(sockets=[listener])
        finally:
            engine.close()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args: argparse.Namespace = make_parser().parse_args(argv)
    quiet_libraries()
    return status_of(serve, args)


if __name__ == "__main__":
    sys.exit(main())
