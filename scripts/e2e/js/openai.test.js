// The official OpenAI package for JavaScript, unmodified.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { checkTotal, model, question, url, weatherQuestion } from "./served.js";

const client = new OpenAI({ baseURL: url, apiKey: "not-needed", maxRetries: 0, timeout: 300_000 });
const base = { model, messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 48 };
const weather = { model, messages: [{ role: "user", content: weatherQuestion }], temperature: 0, max_tokens: 160 };

const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the current weather of a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
        required: ["city", "unit"],
        additionalProperties: false,
      },
    },
  },
];
const named = { type: "function", function: { name: "get_weather" } };
const Person = z.object({ name: z.string(), age: z.number().int(), retired: z.boolean() });
const person = [{ role: "user", content: "Who is this? Ada is 36 years old and works." }];

function plain(message) {
  const calls = (message.tool_calls ?? []).map((call) => [call.type, call.function.name, call.function.arguments]);
  return [message.role, message.content || null, calls];
}

test("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.deepEqual(ids, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a whole answer", async () => {
  const answer = await client.chat.completions.create(base);
  assert.equal(answer.object, "chat.completion");
  assert.ok(answer.choices[0].message.content);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  checkTotal(answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens);
});

test("a stream is the whole answer", async () => {
  const whole = await client.chat.completions.create(base);
  const stream = await client.chat.completions.create({
    ...base, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  const reasons = [];
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    for (const choice of chunk.choices) {
      text += choice.delta.content ?? "";
      if (choice.finish_reason) reasons.push(choice.finish_reason);
    }
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(reasons, [whole.choices[0].finish_reason]);
  assert.deepEqual(
    [usage.prompt_tokens, usage.completion_tokens], [whole.usage.prompt_tokens, whole.usage.completion_tokens]);
});

test("the helper for streams", async () => {
  const whole = await client.chat.completions.create(base);
  const runner = client.chat.completions.stream(base);
  let pieces = 0;
  runner.on("content", () => pieces++);
  const final = await runner.finalChatCompletion();
  assert.ok(pieces > 4, "it comes in pieces");
  assert.deepEqual(plain(final.choices[0].message), plain(whole.choices[0].message));
  assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("two choices with likelihoods", async () => {
  const answer = await client.chat.completions.create({
    ...base, n: 2, temperature: 1, seed: 4, logprobs: true, top_logprobs: 2, max_tokens: 8,
  });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  for (const choice of answer.choices) {
    assert.ok(choice.logprobs.content.length > 0);
    for (const entry of choice.logprobs.content) assert.ok(entry.logprob <= 0 && entry.top_logprobs.length === 2);
  }
});

test("a model calls by itself, streamed or not", async () => {
  const whole = await client.chat.completions.create({ ...weather, tools });
  assert.equal(whole.choices[0].finish_reason, "tool_calls");
  const [call] = whole.choices[0].message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris", unit: "celsius" });
  const final = await client.chat.completions.stream({ ...weather, tools }).finalChatCompletion();
  assert.deepEqual(plain(final.choices[0].message), plain(whole.choices[0].message));
});

test("every choice of tools", async () => {
  const ask = (tool_choice) =>
    client.chat.completions.create({ ...weather, tools, tool_choice, parallel_tool_calls: false, max_tokens: 64 });
  for (const choice of ["required", named]) {
    const answer = await ask(choice);
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(answer.choices[0].message.tool_calls.map((call) => call.function.name), ["get_weather"]);
  }
  assert.equal((await ask("none")).choices[0].message.tool_calls, undefined);
});

test("a round trip", async () => {
  const { message } = (await client.chat.completions.create({ ...weather, tools })).choices[0];
  const results = message.tool_calls.map((call) => ({
    role: "tool", tool_call_id: call.id, content: '{"temperature": 31, "sky": "cloudy"}',
  }));
  // So small a model would otherwise call again, whatever it was told.
  const last = await client.chat.completions.create({
    ...weather, tools, tool_choice: "none", messages: [...weather.messages, message, ...results],
  });
  assert.match(last.choices[0].message.content, /31/);
});

test("the helper that runs functions", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    ...weather,
    tool_choice: named,
    parallel_tool_calls: false,
    tools: [{
      type: "function",
      function: {
        ...tools[0].function,
        parse: JSON.parse,
        function: (given) => {
          asked.push(given);
          return "31 degrees, cloudy";
        },
      },
    }],
  });
  await runner.done();
  assert.equal(asked.length, 1);
  assert.equal(asked[0].city, "Paris");
  assert.deepEqual(runner.messages.map((message) => message.role), ["user", "assistant", "tool"]);
  const last = await client.chat.completions.create({
    ...weather, messages: runner.messages, tools, tool_choice: "none",
  });
  assert.match(last.choices[0].message.content, /31/);
});

test("a strict function is parsed", async () => {
  const answer = await client.chat.completions.parse({
    ...weather, messages: person, tools: [zodFunction({ name: "person", parameters: Person })],
    tool_choice: "required", parallel_tool_calls: false,
  });
  assert.equal(Person.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments).name, "Ada");
});

test("a format is parsed, streamed or not", async () => {
  const body = { ...weather, messages: person, response_format: zodResponseFormat(Person, "person") };
  const { parsed } = (await client.chat.completions.parse(body)).choices[0].message;
  assert.equal(Person.parse(parsed).name, "Ada");
  const final = await client.chat.completions.stream(body).finalChatCompletion();
  assert.deepEqual(final.choices[0].message.parsed, parsed);
});

test("text completions", async () => {
  const body = { model, prompt: "The capital of France is", temperature: 0, max_tokens: 8 };
  const whole = await client.completions.create(body);
  let text = "";
  for await (const chunk of await client.completions.create({ ...body, stream: true })) {
    text += chunk.choices[0]?.text ?? "";
  }
  assert.match(text, /Paris/);
  assert.equal(text, whole.choices[0].text);
});

test("an error names the parameter", async () => {
  await assert.rejects(client.chat.completions.create({ ...base, temperature: 99 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "temperature";
  });
  await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
});

test("a stream that is left", async () => {
  const stream = await client.chat.completions.create({ ...base, max_tokens: 2000, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break;
  }
  assert.ok(stream.controller.signal.aborted);
});
