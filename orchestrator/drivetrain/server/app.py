"""The application of the server. Every route requires a token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from drivetrain_pipelines.errors import DrivetrainError, InputError
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from limits import RateLimitItemPerSecond

from drivetrain.api.predictions import MAX_INPUT_BYTES
from drivetrain.errors import NotFoundError
from drivetrain.job import bundle
from drivetrain.server import cluster, metrics, results, runs
from drivetrain.server.dependencies import Parts
from drivetrain.server.limits import Limits

_RATE = RateLimitItemPerSecond(400, 4)  # of an address: a loop without a pause reaches it, a person does not
_SPARE_BYTES = 1 << 20  # of a body, in addition to its content
_BODY_BYTES = {
    re.compile(r"/v1/packages/"): bundle.MAX_BYTES + _SPARE_BYTES,
    re.compile(r"/v1/runs/[^/]+/predict$"): 4 * MAX_INPUT_BYTES // 3 + _SPARE_BYTES,  # in base64
}
_FOLLOWERS = 128  # threads: each long poll occupies one


def create_app(parts: Parts) -> FastAPI:
    """Return the application with all its routes."""
    app = FastAPI(
        title="Drivetrain", version="1", openapi_url=None, docs_url=None, redoc_url=None, lifespan=_many_threads
    )
    app.state.parts = parts
    app.include_router(runs.router, prefix="/v1")
    app.include_router(results.router, prefix="/v1")
    app.include_router(cluster.router, prefix="/v1")
    app.include_router(metrics.router)
    app.state.metrics = metrics.registry(parts)
    app.add_exception_handler(InputError, _wrong_input)
    app.add_exception_handler(NotFoundError, _not_found)
    app.add_exception_handler(DrivetrainError, _failed)
    app.add_exception_handler(OSError, _out_of_order)
    app.add_middleware(Limits, large=_BODY_BYTES, rate=_RATE)
    return app


@asynccontextmanager
async def _many_threads(_: FastAPI) -> AsyncIterator[None]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_FOLLOWERS, "follower"))
    yield


async def _wrong_input(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    where = {"where": error.where, "given": error.given, "allowed": error.allowed, "fix": error.fix}
    return JSONResponse({"detail": str(error), "input": where}, 422)


async def _not_found(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NotFoundError)
    return JSONResponse({"detail": str(error), "missing": error.to_json()}, 404)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


async def _out_of_order(_: Request, error: Exception) -> JSONResponse:
    """Answer an error of the server itself, such as a full disk."""
    return JSONResponse({"detail": f"the server cannot do this now: {error}"}, 500)
