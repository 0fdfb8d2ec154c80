// Embeddings with OpenAI's package and with Vercel's AI SDK, unmodified, by an encoder beside the model that generates.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, cosineSimilarity, embed, embedMany, generateText } from "ai";
import OpenAI, { BadRequestError } from "openai";
import { encoder, model, url } from "./served.js";

const client = new OpenAI({ baseURL: url, apiKey: "not-needed", maxRetries: 0, timeout: 300_000 });
const provider = createOpenAICompatible({ name: "rempart", baseURL: url, apiKey: "not-needed" });
const base = { model: provider.embeddingModel(encoder), maxRetries: 0 };

const documents = [
  "Bread dough rests for an hour before it is baked in a hot iron pot.",
  "The train to Grenoble leaves at 09:40 from platform seven.",
  "The code word for opening the north gate of the harbour is marmalade.",
  "Octopuses have three hearts.",
  "The spare key of the greenhouse hangs behind the blue barrel.",
];
const asked = "What is the code word that opens the north gate?";
const long = "word ".repeat(600);

// What the numbers are as floats of 32 bits.
const floats = (vectors) => vectors.map((vector) => Array.from(vector, Math.fround));

async function byOpenAI(input, more = {}) {
  const answer = await client.embeddings.create({ model: encoder, input, ...more });
  assert.deepEqual(answer.data.map((entry) => entry.index), [...answer.data.keys()]);
  return floats(answer.data.map((entry) => entry.embedding));
}

test("both models are listed", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.deepEqual(ids, [model, encoder]);
});

test("numbers and what the package decodes of base64 are the same", async () => {
  const decoded = await byOpenAI(documents);
  assert.ok(decoded.every((vector) => vector.length === 384 && Math.abs(Math.hypot(...vector) - 1) < 1e-5));
  assert.deepEqual(decoded, await byOpenAI(documents, { encoding_format: "float" }));
});

test("one text, and tokens", async () => {
  const [one] = await byOpenAI("hello world");
  for (const input of [["hello world"], [101, 7592, 2088, 102], [[101, 7592, 2088, 102]]]) {
    assert.deepEqual(await byOpenAI(input), [one]);
  }
});

test("embed", async () => {
  const { embedding, usage, value, warnings } = await embed({ ...base, value: documents[2] });
  assert.deepEqual(floats([embedding]), await byOpenAI(documents[2]));
  assert.equal(value, documents[2]);
  assert.ok(usage.tokens > 2);
  assert.deepEqual(warnings, []);
});

test("embedMany", async () => {
  const expected = await byOpenAI(documents);
  const { embeddings, usage } = await embedMany({ ...base, values: documents });
  assert.deepEqual(floats(embeddings), expected);
  const alone = await Promise.all(documents.map((value) => embed({ ...base, value })));
  assert.deepEqual(floats(alone.map((one) => one.embedding)), expected);
  assert.equal(usage.tokens, alone.reduce((sum, one) => sum + one.usage.tokens, 0));
});

test("embedMany in several requests at once", async () => {
  const values = Array.from({ length: 40 }, (_, at) => `${documents[at % documents.length]} (${at})`);
  const small = createOpenAICompatible({ name: "rempart", baseURL: url, apiKey: "not-needed" }).embeddingModel(encoder);
  Object.defineProperty(small, "maxEmbeddingsPerCall", { value: 3 });
  const { embeddings, responses } = await embedMany({ ...base, model: small, values });
  assert.equal(responses.length, 14);
  assert.deepEqual(floats(embeddings), await byOpenAI(values));
});

test("dimensions", async () => {
  const { embeddings } = await embedMany({
    ...base, values: documents, providerOptions: { openaiCompatible: { dimensions: 64 } },
  });
  assert.ok(embeddings.every((vector) => vector.length === 64));
  assert.deepEqual(floats(embeddings), await byOpenAI(documents, { dimensions: 64 }));
});

test("an error is told", async () => {
  await assert.rejects(embedMany({ ...base, values: ["a", long] }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.deepEqual([error.statusCode, error.isRetryable], [400, false]);
    return error.message.includes("`input[1]`");
  });
  await assert.rejects(byOpenAI(["a", ""]), (error) => {
    assert.ok(error instanceof BadRequestError);
    return error.param === "input[1]" && error.code === "empty_string";
  });
});

test("an answer from the document that is found", async () => {
  const { embeddings } = await embedMany({ ...base, values: documents });
  const { embedding } = await embed({ ...base, value: asked });
  const scores = embeddings.map((vector) => cosineSimilarity(vector, embedding));
  const best = scores.indexOf(Math.max(...scores));
  assert.equal(best, 2);
  const { results } = await client.post("/rerank", { body: { model: encoder, query: asked, documents } });
  assert.equal(results[0].index, best);
  assert.ok(Math.abs(results[0].relevance_score - scores[best]) < 1e-5);
  const { text } = await generateText({
    model: provider(model), temperature: 0, maxOutputTokens: 48, maxRetries: 0,
    prompt: `Answer with the help of this text.\n\nText: ${documents[best]}\n\nQuestion: ${asked}`,
  });
  assert.match(text, /marmalade/i);
});
