"""Push notification configs of A2A tasks: set, shown, listed and deleted. Who is called, and when: `engine/push.py`."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from perdure.api.a2acall import TASK_NOT_FOUND, Asked, task_of
from perdure.api.a2amessage import push_config_of, text
from perdure.api.answers import Json
from perdure.api.jsonrpc import RpcError, result_of
from perdure.engine import push
from perdure.engine.a2a import task_id
from perdure.engine.a2aparts import Version
from perdure.engine.tasks import Task


async def set_push(asked: Asked) -> Response:
    old = asked.version == "0.3"
    task = await task_of(asked, "taskId", to="update")
    given = asked.params.get("pushNotificationConfig") if old else asked.params
    config = push_config_of(given, asked.version, asked.engine.registry.config)
    async with asked.engine.pool.connection() as conn:
        await push.put(conn, task.thread_id, task.run_id, config)
    return Json(result_of(asked.id, _config(task, config, asked.version)))


async def get_push(asked: Asked) -> Response:
    task = await task_of(asked, "id" if asked.version == "0.3" else "taskId")
    name = asked.params.get("pushNotificationConfigId") if asked.version == "0.3" else text(asked.params, "id")
    found = await push.of_task(asked.engine, task.thread_id, task.run_id, name if isinstance(name, str) else None)
    if not found:
        raise RpcError(TASK_NOT_FOUND, "The task has no such push notification config")
    return Json(result_of(asked.id, _config(task, found[0], asked.version)))


async def list_push(asked: Asked) -> Response:
    task = await task_of(asked, "id" if asked.version == "0.3" else "taskId")
    found = await push.of_task(asked.engine, task.thread_id, task.run_id)
    shown = [_config(task, config, asked.version) for config in found]
    return Json(result_of(asked.id, shown if asked.version == "0.3" else {"configs": shown}))


async def delete_push(asked: Asked) -> Response:
    old = asked.version == "0.3"
    task = await task_of(asked, "id" if old else "taskId", to="update")
    name = text(asked.params, "pushNotificationConfigId" if old else "id")
    await push.delete(asked.engine, task.thread_id, task.run_id, name)
    return Json(result_of(asked.id, None if old else {}))


def _config(task: Task, config: push.Config, version: Version) -> dict[str, Any]:
    """As it was set, without the credentials."""
    shown: dict[str, Any] = {"id": config.config_id, "url": config.url}
    if config.token:
        shown["token"] = config.token
    if config.scheme:
        shown["authentication"] = {"scheme": config.scheme} if version == "1.0" else {"schemes": [config.scheme]}
    name = task_id(task.thread_id, task.run_id)
    return {"taskId": name, **shown} if version == "1.0" else {"taskId": name, "pushNotificationConfig": shown}
