// Where the server is, and what the tests of all packages share.
import assert from "node:assert/strict";
import { subscribe } from "node:diagnostics_channel";

export const url = `${process.env.REMPART_URL}/v1`;
export const model = process.env.REMPART_MODEL;
// Set only where one is served beside the model.
export const encoder = process.env.REMPART_ENCODER;
export const question = "Name the four seasons of the year.";
export const weatherQuestion = "What is the weather in Paris in Celsius?";

// Packages may report, fetch and trace, but not from a machine on premise.
subscribe("undici:client:beforeConnect", ({ connectParams }) => {
  if (connectParams.hostname !== "127.0.0.1") {
    console.error(`a connection to ${connectParams.hostname} was tried`);
    process.exit(3);
  }
});

export function checkTotal(prompt, completion, total) {
  assert.ok(prompt > 0 && completion > 0);
  assert.equal(total, prompt + completion);
}
