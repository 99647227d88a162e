// Prints one line of JSON for test_ai_sdk.py: the AI SDK's results from the server's answers.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [part, baseURL, model, prompt] = process.argv.slice(2);
const server = { baseURL, apiKey: "none" };
const compatible = createOpenAICompatible({
  ...server,
  name: "griffin",
  includeUsage: true,
  supportsStructuredOutputs: true,
  // A field that OpenAI's API does not have.
  transformRequestBody: (body) => ({ ...body, sparsity: 0.5 }),
})(model);
const openai = createOpenAI(server).chat(model);
// The default API of createOpenAI. ``store: false`` sends the whole history, because the server keeps none.
const responses = createOpenAI(server).responses(model);
const stateless = { providerOptions: { openai: { store: false } } };
const common = { ...stateless, temperature: 0, maxRetries: 0, maxOutputTokens: 400, prompt };

const person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(130),
  home: z.object({ city: z.enum(["Paris", "Rome"]), country: z.string().max(20).nullable() }),
  colors: z.array(z.enum(["red", "blue", "green"])).max(3),
});

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

// Errors of a stream reject the awaited promise, so do not print them as well.
const quiet = { onError: () => {} };

async function failure(request) {
  try {
    await request;
  } catch ({ name, message, statusCode, isRetryable }) {
    return { name, message, statusCode, isRetryable };
  }
}

async function object(model) {
  const { object, finishReason, usage } = await generateObject({ ...common, model, schema: person });
  const streamed = streamObject({ ...common, ...quiet, model, schema: person });
  const partial = await all(streamed.partialObjectStream);
  return { object, finishReason, usage, partial, streamed: await streamed.object, streamedUsage: await streamed.usage };
}

// Continues a chat with the messages of an answer.
async function goneOn(store) {
  const ask = { ...common, model: responses, maxOutputTokens: 8, providerOptions: { openai: { store } } };
  const { response } = await generateText(ask);
  const again = { role: "user", content: "And again?" };
  const messages = [{ role: "user", content: prompt }, ...response.messages, again];
  return (await generateText({ ...ask, prompt: undefined, messages })).usage;
}

const calls = (steps) => steps.map((step) => step.toolCalls.map(({ toolName, input, invalid }) => ({ toolName, input, invalid })));

async function called(model) {
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
    execute: async ({ city }) => `sunny in ${city}`,
  });
  // Two steps: the first one calls, the second one has the result in its history.
  const ask = { ...common, model, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" }, stopWhen: stepCountIs(2) };
  const whole = await generateText(ask);
  const streamed = streamText({ ...ask, ...quiet });
  const parts = await all(streamed.fullStream);
  return {
    calls: calls(whole.steps),
    results: whole.steps[0].toolResults.map(({ output }) => output),
    streamed: calls(await streamed.steps),
    types: parts.map(({ type }) => type),
    input: parts.filter(({ type }) => type === "tool-input-delta").map(({ delta }) => delta),
    usage: [whole.totalUsage, await streamed.totalUsage],
  };
}

async function agent() {
  const inputSchema = z.object({ city: z.string() });
  const tools = {
    get_temperature: tool({ description: "The current temperature in a city, in degrees Celsius.", inputSchema, execute: async () => "-7 degrees Celsius" }),
    get_population: tool({ description: "How many people live in a city.", inputSchema, execute: async () => "717710 people" }),
  };
  const system = "You call functions to find facts. Once you have all the results you need, answer the user in plain words and call nothing more.";
  const question = "What is the temperature in Oslo, and how many people live there?";
  const result = streamText({ ...common, ...quiet, model: openai, system, prompt: question, tools, stopWhen: stepCountIs(6) });
  const text = await result.text;
  const steps = await result.steps;
  return { text, calls: calls(steps).flat(), reasons: steps.map(({ finishReason }) => finishReason) };
}

const parts = {
  small: async () => ({
    objects: [await object(compatible), await object(openai), await object(responses)],
    called: [await called(compatible), await called(openai), await called(responses)],
    choice: (await generateObject({ ...common, model: openai, output: "enum", enum: ["a person", "a city"] })).object,
    goneOn: await goneOn(false),
    stored: await failure(goneOn(undefined)),
    cutOff: await failure(generateObject({ ...common, model: openai, schema: person, maxOutputTokens: 5 })),
    optional: await failure(generateObject({ ...common, model: openai, schema: z.object({ name: z.string().optional() }) })),
    badModel: await failure(generateText({ ...common, model: createOpenAI(server).chat("gpt-4") })),
  }),
  coder: async () => ({ person: (await generateObject({ ...common, model: openai, schema: person })).object, agent: await agent() }),
};

console.log(JSON.stringify(await parts[part]()));
