"""Which models take pictures, by their names."""

from __future__ import annotations

import base64

import pytest

from crafter_pipeline.vision import image_part, sees_images

SEE = """gpt-4o gpt-4o-mini gpt-4-turbo gpt-4-vision-preview gpt-4.1 gpt-5 openai/gpt-5-mini claude-3-5-sonnet
claude-sonnet-4-5 gemini-2.5-pro qwen-vl-max Qwen/Qwen2-VL-7B-Instruct Qwen/Qwen2.5-VL-3B-Instruct
Qwen/Qwen3-VL-4B-Instruct rl:Qwen/Qwen3-VL-2B-Instruct:job_1 pixtral-12b llava-v1.6 microsoft/Phi-3-vision-128k-instruct
OpenGVLab/InternVL2-8B cogvlm2 meta-llama/Llama-3.2-11B-Vision-Instruct meta-llama/llama-4-scout-17b deepseek-vl2
HuggingFaceTB/SmolVLM2-2.2B-Instruct"""
BLIND = """crafter-tiny crafter-expert crafter-random math-expert HuggingFaceTB/SmolLM2-135M-Instruct Qwen/Qwen3-0.6B
qwen/qwen3-32b fft:Qwen/Qwen3-4B:job_1 fft:crafter-tiny:job_a Qwen/Qwen2.5-7B-Instruct openai/gpt-oss-120b
llama-3.3-70b-versatile meta-llama/Llama-3.1-8B-Instruct meta-llama/Meta-Llama-3-8B gpt-3.5-turbo gpt-4 gpt-4-0613
mistralai/Mixtral-8x7B deepseek-ai/DeepSeek-R1 o3-mini moonshotai/kimi-k2-instruct"""
UNKNOWN = "policy scripted m my-model latest:sft gpt-6"


@pytest.mark.parametrize(
    ("model", "sees"),
    [(m, s) for names, s in ((SEE, True), (BLIND, False), (UNKNOWN, None)) for m in names.split()],
)
def test_a_model_s_name_says_whether_it_sees(model, sees):
    assert sees_images(model) is sees


def test_a_picture_is_a_part_of_a_message():
    url = image_part(b"\x89PNG")["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == b"\x89PNG"
