"""Drives the server with OpenAI's own client.

usage: openai_client.py SERVER-PROGRAM
"""

import json
import sys
import threading
import time
import urllib.request

import openai

from harness import server

ASK = [{"role": "user", "content": "Define the word house."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Rome"]},
                "days": {"type": "array", "items": {"enum": [1, 2]}},
            },
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"word": {"enum": ["house", "tree"]}, "letters": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["word", "letters"],
    "additionalProperties": False,
}


def chat(client, messages=ASK, **options):
    options = {"model": "tiny", "temperature": 0, "max_tokens": 24} | options
    return client.chat.completions.create(messages=messages, **options)


def whole_and_stream(client):
    whole = chat(client)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text, (streamed, text)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    # The prompt was answered a moment ago.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= whole.usage.prompt_tokens - 1
    with client.chat.completions.stream(model="tiny", messages=ASK, temperature=0, max_tokens=24) as stream:
        for _ in stream:
            pass
        # Not get_final_completion(): that raises for an answer cut at max_tokens, which this one may be.
        assert stream.current_completion_snapshot.choices[0].message.content == text


def options(client):
    first, again, other = (
        chat(client, temperature=1, seed=seed, max_tokens=32).choices[0].message.content for seed in (1, 1, 2)
    )
    assert first == again and first != other, (first, again, other)
    told = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
    done = client.completions.create(model="tiny", prompt="def add(a, b):\n", temperature=0, max_tokens=20, logprobs=1)
    assert done.choices[0].text and len(done.choices[0].logprobs.tokens) <= 20
    stop = done.choices[0].text[5:8]
    cut = client.completions.create(
        model="tiny", prompt="def add(a, b):\n", temperature=0, max_tokens=20, stop=stop
    )
    assert cut.choices[0].text == done.choices[0].text.split(stop)[0] and cut.choices[0].finish_reason == "stop"


def tools(client):
    named = {"type": "function", "function": {"name": "weather"}}
    told = {"tools": [WEATHER], "tool_choice": named, "max_tokens": 100}
    answer = chat(client, **told).choices[0]
    assert answer.finish_reason == "tool_calls", answer
    [call] = answer.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    chunks = [c.choices[0] for c in chat(client, stream=True, **told)]
    calls = [call for c in chunks for call in c.delta.tool_calls or []]
    assert "".join(c.function.arguments for c in calls) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    after = chat(client, [*ASK, answer.message.model_dump(exclude_none=True), result], tools=[WEATHER])
    assert after.usage.prompt_tokens > 20
    assert chat(client, tools=[WEATHER]).choices[0].finish_reason in ("stop", "length")


def schema(client):
    kept = {"type": "json_schema", "json_schema": {"name": "entry", "strict": True, "schema": SCHEMA}}
    answer = json.loads(chat(client, response_format=kept, max_tokens=64).choices[0].message.content)
    assert answer["word"] in ("house", "tree") and 0 <= answer["letters"] <= 9, answer
    text = "".join(
        c.choices[0].delta.content or "" for c in chat(client, response_format=kept, max_tokens=64, stream=True)
    )
    assert json.loads(text) == answer, text


def refused(kind, call, **expected):
    try:
        call()
    except kind as error:
        for name, value in expected.items():
            assert getattr(error, name) == value, (name, error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors(client):
    refused(openai.NotFoundError, lambda: chat(client, model="gpt-4"), code="model_not_found", param="model")
    refused(openai.BadRequestError, lambda: chat(client, top_p=2), param="top_p")
    refused(openai.BadRequestError, lambda: chat(client, n=2), param="n")
    long = [{"role": "user", "content": "word " * 9000}]
    refused(openai.BadRequestError, lambda: chat(client, long), code="context_length_exceeded")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    refused(openai.BadRequestError, lambda: chat(client, response_format=bad), code="invalid_grammar")
    huge = [{"role": "user", "content": "x" * 300_000}]
    refused(openai.APIStatusError, lambda: chat(client, huge), status_code=413)
    stranger = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, lambda: chat(stranger), code="invalid_api_key")


def metrics(client):
    request = urllib.request.Request(f"{str(client.base_url).removesuffix('/v1/')}/metrics")
    request.add_header("Authorization", "Bearer secret")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def busy(client):
    """One session, one place to wait: a third request is turned away, and room comes back by itself."""
    ends = {"logit_bias": {str(token): -100 for token in (1, 6, 14)}}
    streams, waiting = [], []
    running = chat(client, stream=True, max_tokens=20000, **ends)
    next(iter(running))
    streams.append(running)
    waiter = threading.Thread(target=lambda: waiting.append(chat(client)))
    waiter.start()
    deadline = time.monotonic() + 30
    while "\ngemma4_waiting_requests 1\n" not in metrics(client):
        assert time.monotonic() < deadline, "the second request does not wait"
        time.sleep(0.01)
    error = refused(openai.RateLimitError, lambda: chat(client), code="queue_full")
    assert int(error.response.headers["retry-after"]) >= 1
    # Going away cancels the running answer, and the waiting one comes through.
    streams[0].close()
    waiter.join(timeout=30)
    assert waiting and waiting[0].choices[0].message.content


def main():
    limits = ["--api-key", "secret", "--parallel", "1", "--queue", "1", "--n-ctx", "8192", "--max-body", "256"]
    with server(sys.argv[1], *limits) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", timeout=60, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        for check in (whole_and_stream, options, tools, schema, errors, busy):
            started = time.monotonic()
            check(client)
            print(f"{check.__name__}: ok, {time.monotonic() - started:.1f} s", flush=True)
    print("shutdown: ok")


if __name__ == "__main__":
    main()
