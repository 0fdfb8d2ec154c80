// Vercel's AI SDK with its provider for OpenAI-compatible servers, unmodified.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { checkTotal, model, question, url, weatherQuestion } from "./served.js";

const options = { name: "rempart", baseURL: url, apiKey: "not-needed", includeUsage: true };
const chat = createOpenAICompatible({ ...options, supportsStructuredOutputs: true })(model);
const base = { model: chat, temperature: 0, maxOutputTokens: 160, maxRetries: 0 };

const Person = z.object({ name: z.string(), age: z.number().int(), retired: z.boolean() });
const person = "Who is this? Ada is 36 years old and works.";
const unit = z.enum(["celsius", "fahrenheit"]);

// A fresh one for each test: it remembers what it was asked.
function weatherTool() {
  const asked = [];
  const get_weather = tool({
    description: "Get the current weather of a city.",
    inputSchema: z.object({ city: z.string(), unit }),
    execute: async (given) => {
      asked.push(given);
      return { temperature: 31, sky: "cloudy" };
    },
  });
  return { asked, tools: { get_weather } };
}

const system = "You are a helpful assistant.";
// So small a model would otherwise call again, whatever it was told.
const answerAfterOneCall = ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: "none" } : {});

function checkSteps(steps, asked, text) {
  assert.deepEqual(asked, [{ city: "Paris", unit: "celsius" }]);
  assert.deepEqual(steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  assert.deepEqual(steps[0].toolResults[0].output, { temperature: 31, sky: "cloudy" });
  assert.match(text, /31/);
}

test("generateText", async () => {
  const answer = await generateText({ ...base, system: "You answer briefly.", prompt: question });
  assert.ok(answer.text);
  assert.ok(["stop", "length"].includes(answer.finishReason));
  assert.equal(answer.response.modelId, model);
  assert.deepEqual(answer.warnings, []);
  checkTotal(answer.usage.inputTokens, answer.usage.outputTokens, answer.usage.totalTokens);
});

test("streamText is what generateText is", async () => {
  const whole = await generateText({ ...base, prompt: question });
  const answer = streamText({ ...base, prompt: question });
  const pieces = [];
  for await (const piece of answer.textStream) pieces.push(piece);
  assert.ok(pieces.length > 4, "it comes in pieces");
  assert.equal(pieces.join(""), whole.text);
  assert.equal(await answer.finishReason, whole.finishReason);
  const usage = await answer.usage;
  assert.deepEqual([usage.inputTokens, usage.outputTokens], [whole.usage.inputTokens, whole.usage.outputTokens]);
});

test("a loop of several steps", async () => {
  const { asked, tools } = weatherTool();
  const answer = await generateText({
    ...base, tools, system, prompt: weatherQuestion, stopWhen: stepCountIs(3), prepareStep: answerAfterOneCall,
  });
  checkSteps(answer.steps, asked, answer.text);
});

test("a loop of several steps in a stream", async () => {
  const { asked, tools } = weatherTool();
  const answer = streamText({
    ...base, tools, system, prompt: weatherQuestion, stopWhen: stepCountIs(3), prepareStep: answerAfterOneCall,
  });
  const types = [];
  for await (const part of answer.fullStream) {
    assert.notEqual(part.type, "error", String(part.error));
    types.push(part.type);
  }
  checkSteps(await answer.steps, asked, await answer.text);
  for (const type of ["tool-input-start", "tool-input-delta", "tool-call", "tool-result", "finish-step", "finish"]) {
    assert.ok(types.includes(type), `${type} in ${types}`);
  }
});

test("every choice of tools", async () => {
  for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
    const { asked, tools } = weatherTool();
    const answer = await generateText({ ...base, tools, toolChoice, prompt: "Hello." });
    assert.equal(answer.finishReason, "tool-calls");
    assert.ok(asked.length > 0);
    for (const given of asked) unit.parse(given.unit);
  }
  const { asked, tools } = weatherTool();
  const answer = await generateText({ ...base, tools, toolChoice: "none", prompt: weatherQuestion });
  assert.deepEqual([answer.toolCalls, asked], [[], []]);
});

test("generateObject", async () => {
  const { object, finishReason } = await generateObject({ ...base, schema: Person, prompt: person });
  assert.equal(Person.parse(object).name, "Ada");
  assert.equal(finishReason, "stop");
});

test("generateObject without a schema for the server", async () => {
  const plain = createOpenAICompatible(options)(model);
  const { object } = await generateObject({
    ...base, model: plain, output: "no-schema", prompt: `${person} Say it in JSON.`,
  });
  assert.equal(typeof object, "object");
});

test("streamObject", async () => {
  const whole = await generateObject({ ...base, schema: Person, prompt: person });
  const answer = streamObject({ ...base, schema: Person, prompt: person });
  let states = 0;
  for await (const state of answer.partialObjectStream) states += state ? 1 : 0;
  assert.ok(states > 2, "it comes in pieces");
  assert.deepEqual(await answer.object, whole.object);
});

test("lists and choices", async () => {
  const list = await generateObject({
    ...base, output: "array", schema: z.object({ name: z.string().max(12) }), prompt: "Name two colours.",
  });
  assert.ok(list.object.every((entry) => entry.name.length <= 12));
  const choice = await generateObject({
    ...base, output: "enum", enum: ["spring", "winter"], prompt: "When does it snow?",
  });
  assert.ok(["spring", "winter"].includes(choice.object));
});

test("the output of generateText and streamText", async () => {
  const output = Output.object({ schema: Person });
  const whole = await generateText({ ...base, output, prompt: person });
  assert.equal(Person.parse(whole.output).name, "Ada");
  const answer = streamText({ ...base, output, prompt: person });
  let states = 0;
  for await (const state of answer.partialOutputStream) states += state ? 1 : 0;
  assert.ok(states > 2, "it comes in pieces");
  assert.deepEqual(await answer.output, whole.output);
});

test("text completions", async () => {
  const completion = createOpenAICompatible(options).completionModel(model);
  const body = { ...base, model: completion, maxOutputTokens: 12, prompt: "Say hello." };
  const { text } = await generateText(body);
  assert.ok(text);
  assert.equal(await streamText(body).text, text);
});

test("an error is told", async () => {
  await assert.rejects(generateText({ ...base, prompt: question, temperature: 99 }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 400);
    assert.equal(error.isRetryable, false);
    return error.message.includes("temperature");
  });
});
