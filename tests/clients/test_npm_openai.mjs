// Prints one line of JSON for test_npm_openai.py: the answers that OpenAI's SDK for JavaScript got.
import OpenAI from "openai";

const [baseURL, model, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const common = { model, temperature: 0, max_tokens: 8 };
const text = { ...common, prompt };
const chat = { ...common, messages: [{ role: "user", content: prompt }] };
const usage = { stream: true, stream_options: { include_usage: true } };

const city = { type: "string", enum: ["Paris", "Rome"] };
const parameters = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const weather = { name: "weather", description: "The weather in a city.", parameters };
const tools = { ...chat, max_tokens: 200, tools: [{ type: "function", function: weather }], tool_choice: "required", parallel_tool_calls: false };

// The helper calls the function itself and sends the result back.
const asked = [];
async function run(stream) {
  const look = ({ city }) => (asked.push(city), "sunny");
  const callable = { type: "function", function: { ...weather, function: look, parse: JSON.parse } };
  const choice = { type: "function", function: { name: "weather" } };
  const runner = client.chat.completions.runTools({ ...tools, stream, tools: [callable], tool_choice: choice });
  await runner.done();
  return runner.messages;
}

async function all(stream) {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
}

async function failure(request) {
  try {
    await request;
  } catch (error) {
    const { status, param, code, type, requestID } = error;
    return { class: error.constructor.name, status, param, code, type, requestID };
  }
}

const models = [];
for await (const each of client.models.list()) models.push(each.id);

console.log(
  JSON.stringify({
    models,
    completion: await client.completions.create(text),
    half: await client.completions.create({ ...text, sparsity: 0.5 }),
    streamedCompletion: await all(client.completions.create({ ...text, ...usage, sparsity: 0.5 })),
    chat: await client.chat.completions.create(chat),
    streamedChat: await all(client.chat.completions.create({ ...chat, ...usage })),
    helper: await client.chat.completions.stream({ ...chat, ...usage }).finalChatCompletion(),
    toolCall: await client.chat.completions.create(tools),
    streamedToolCall: await client.chat.completions.stream(tools).finalChatCompletion(),
    run: await run(false),
    streamedRun: await run(true),
    asked,
    badField: await failure(client.completions.create({ ...text, sparsity: 2 })),
    badModel: await failure(client.chat.completions.create({ ...chat, model: "gpt-4" })),
  }),
);
