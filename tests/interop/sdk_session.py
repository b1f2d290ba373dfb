"""Run by the published client's own Python: calls its SDK classes and prints what they gave back as one line of JSON.

Arguments: a name of `SESSIONS`, then what it takes. Every call is told as {"answer": …} or {"error": …}.
"""

import asyncio
import json
import os
import sys
import traceback

BACKEND, TASK_APP = os.environ["BACKEND"], os.environ["TASK_APP"]
SYNTH_KEY, TASK_KEY = os.environ["SYNTH_API_KEY"], os.environ["ENVIRONMENT_API_KEY"]
told = {}


async def call(name, awaitable):
    try:
        answer = await awaitable
    except Exception as e:
        told[name] = {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()[-1500:]}
        return None
    told[name] = {"answer": plain(answer)}
    return answer


def plain(value):
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return [plain(v) for v in value] if isinstance(value, list) else value


async def task_app():
    from synth_ai.task.client import TaskAppClient
    from synth_ai.task.contracts import (
        RolloutEnvSpec,
        RolloutPolicySpec,
        RolloutRecordConfig,
        RolloutRequest,
    )
    from synth_ai.task.health import task_app_health
    from synth_ai.task.validators import validate_rollout_response_for_rl

    def request(run_id, mode, url):
        return RolloutRequest(
            run_id=run_id,
            env=RolloutEnvSpec(env_name="crafter", seed=5, config={"env_params": {"max_steps_per_episode": 3}}),
            policy=RolloutPolicySpec(
                policy_name="crafter-react",
                config={"model": "crafter-expert", "inference_url": url, "max_llm_calls": 3},
            ),
            ops=["agent", "env"] * 3,
            record=RolloutRecordConfig(return_trace=True, trace_format="structured"),
            mode=mode,
        )

    async with TaskAppClient(TASK_APP, TASK_KEY) as client:
        await call("health", client.health())
        await call("info", client.info())
        await call("task_info", client.task_info())
        await call("task_info of seeds", client.task_info(seeds=[1, 2]))
        url = f"{BACKEND}/v1/chat/completions"
        rl = await call("rl rollout", client.rollout(request(f"rl-{os.getpid()}", "rl", f"{url}?cid=trace_abc")))
        if rl is not None:
            told["rl complaints"] = {"answer": list(validate_rollout_response_for_rl(rl.model_dump()))}
        await call("eval rollout", client.rollout(request(f"eval-{os.getpid()}", "eval", url)))
        await call("rl rollout without cid", client.rollout(request(f"none-{os.getpid()}", "rl", url)))
    await call("task_app_health", task_app_health(TASK_APP))


async def fine_tuning(rows):
    from synth_ai.learning.client import LearningClient
    from synth_ai.learning.health import backend_health
    from synth_ai.learning.jobs import JobHandle
    from synth_ai.learning.sft.client import FtClient
    from synth_ai.learning.sse import stream_events

    ft, learning = FtClient(BACKEND, SYNTH_KEY), LearningClient(BACKEND, SYNTH_KEY)
    await call("backend_health", backend_health(BACKEND, SYNTH_KEY))
    price = {"job_type": "sft", "gpu_type": "H100", "estimated_seconds": 10.0, "container_count": 1}
    await call("pricing_preflight", learning.pricing_preflight(**price))
    await call("balance", learning.balance_autumn_normalized())

    file_id = await call("FtClient.upload_training_file", ft.upload_training_file(rows))
    hyper = {"n_epochs": 1, "batch_size": 4, "sequence_length": 256}
    wanted = {"model": "Qwen/Qwen3-0.6B", "training_file_id": file_id, "hyperparameters": hyper}
    job = await call("FtClient.create_sft_job", ft.create_sft_job(**wanted))
    await call("FtClient.start_job", ft.start_job(job["job_id"]))
    events, points = [], []
    handle = JobHandle(BACKEND, SYNTH_KEY, job["job_id"])
    polled = handle.poll_until_terminal(
        interval_seconds=1.0, max_seconds=180, on_event=events.append, on_metric=points.append
    )
    await call("JobHandle.poll_until_terminal", polled)
    told["JobHandle saw"] = {"answer": {"events": events, "points": points}}
    streamed = []
    await call("stream_events", stream_events(BACKEND, SYNTH_KEY, job["job_id"], seconds=5, on_event=streamed.append))
    told["streamed"] = {"answer": streamed}

    file_id = await call("LearningClient.upload_training_file", learning.upload_training_file(rows))
    wanted = {"training_type": "sft_offline", **wanted, "training_file_id": file_id}
    job = await call("LearningClient.create_job", learning.create_job(**wanted))
    await call("LearningClient.start_job", learning.start_job(job["job_id"]))
    polled = learning.poll_until_terminal(job["job_id"], interval_seconds=1.0, max_seconds=180)
    await call("LearningClient.poll_until_terminal", polled)
    await call("LearningClient.get_metrics", learning.get_metrics(job["job_id"], name="train.loss", after_step=1))
    await call("LearningClient.get_timeline", learning.get_timeline(job["job_id"]))
    await call("LearningClient.list_fine_tuned_models", learning.list_fine_tuned_models())


async def reinforcement(model):
    from synth_ai.inference.client import InferenceClient
    from synth_ai.learning.rl.client import RlClient

    rl = RlClient(BACKEND, SYNTH_KEY)
    policy = {"use_tools": False, "observation": "sparse", "max_tokens": 8}
    config = {
        "rollout": {"env_name": "crafter", "policy_name": "crafter-react", "max_turns": 2, "policy_config": policy},
        "training": {"num_epochs": 1, "iterations_per_epoch": 1},
    }
    wanted = {"model": model, "task_app_url": TASK_APP, "trainer": {"batch_size": 2, "group_size": 2}}
    job = await call("RlClient.create_job", rl.create_job(**wanted, inline_config=config))
    await call("RlClient.start_job_if_supported", rl.start_job_if_supported(job["job_id"]))
    events, points = [], []
    polled = rl.poll_until_terminal(job["job_id"], on_event=events.append, on_metric=points.append)
    await call("RlClient.poll_until_terminal", polled)
    told["RlClient saw"] = {"answer": {"events": events, "points": points}}
    await call("RlClient.resolve_trainer_start_url", rl.resolve_trainer_start_url("trainer-1"))
    chat = InferenceClient(BACKEND, SYNTH_KEY)
    asked = {"messages": [{"role": "user", "content": "tree east"}], "max_tokens": 8}
    await call("InferenceClient", chat.create_chat_completion(model=model, **asked))


async def jobs_client(rows):
    from synth_ai.jobs.client import JobsClient

    async with JobsClient(BACKEND, SYNTH_KEY) as client:
        content = open(rows, "rb").read()
        upload = {"filename": "a.jsonl", "content": content, "purpose": "fine-tune"}
        file = await call("upload", client.files.upload(**upload, content_type="application/jsonl"))
        wanted = dict(training_file=file["id"], model="Qwen/Qwen3-0.6B", hyperparameters={"n_epochs": 1})
        key = f"key-{os.getpid()}"
        job = await call("create", client.sft.create(**wanted, idempotency_key=key))
        await call("create again", client.sft.create(**wanted, idempotency_key=key))
        await call("file", client.files.retrieve(file["id"]))
        await call("files", client.files.list(purpose="fine-tune"))
        await call("jobs of file", client.files.list_jobs(file["id"]))
        await call("jobs", client.sft.list(created_after=1, status="queued", file_id=file["id"]))
        await call("checkpoints", client.sft.checkpoints(job["id"]))
        await call("events", client.sft.list_events(job["id"]))
        await call("metrics", client.rl.metrics(job["id"]))
        await call("cancelled", client.sft.cancel(job["id"]))
        await call("models", client.models.list())


SESSIONS = {f.__name__: f for f in (task_app, fine_tuning, reinforcement, jobs_client)}
try:
    asyncio.run(SESSIONS[sys.argv[1]](*sys.argv[2:]))
except Exception:
    told["session"] = {"error": traceback.format_exc()[-3000:]}
print("\nTOLD" + json.dumps(told, default=str))
