"""Flags of other servers, and what they are here: llama.cpp's, vLLM's, SGLang's and Ollama's, as data.

As of November 2026.
"""

_REQUEST = "it is a field of each request here"
_TEMPLATE = "leave it out: the model's own chat template is always used"
_FOUND = "leave it out: tool calls and thoughts are found by the model's own template"
_DEVICES = "name devices with --devices"
_PROXY = "put a proxy that does TLS before this server"
_THREADS = "set the variable OMP_NUM_THREADS; without it all cores are used"
_NOTHING = "leave it out: there is nothing to set here"
_MISSING = "this server cannot do that"

_ROWS: tuple[tuple[str, str], ...] = (
    ("-m --model-path", "it is --model here"),
    ("-hf -hfr --hf-repo", "it is --model OWNER/NAME:QUANTISATION here"),
    ("-hff --hf-file", "it is --model OWNER/NAME/FILE.gguf here"),
    ("-mu --model-url", "download the file, and name it with --model"),
    ("-hft --hf-token", "set the variable HF_TOKEN"),
    ("--download-dir", "set the variable HF_HOME"),
    ("--revision", "download it (hf download ID --revision REV), and name its folder with --model"),
    ("-a --alias", "it is --served-model-name here"),
    ("-c --ctx-size --context-length --num-ctx", "it is --max-model-len here"),
    ("-b --batch-size -ub --ubatch-size --max-num-batched-tokens --chunked-prefill-size", "it is --prefill-chunk here"),
    ("-np --parallel --max-num-seqs --max-running-requests", "it is --workers here"),
    ("-cb --cont-batching --no-cont-batching", "nothing is batched here; --workers is how many requests run at once"),
    ("-t --threads -tb --threads-batch", _THREADS),
    ("-ngl --gpu-layers --n-gpu-layers", "--device cuda puts the whole model on the GPU"),
    ("-dev -sm --split-mode -ts --tensor-split -mg --main-gpu", _DEVICES),
    ("-tp --tensor-parallel-size -pp --pipeline-parallel-size -dp --data-parallel-size --tp-size --tp", _DEVICES),
    ("-cmoe --cpu-moe -ot --override-tensor --cpu-offload-gb", "use --ff-offload cpu"),
    ("-q --quantization", "it is --quantize here; a GGUF file needs none"),
    ("--torch-dtype", "it is --dtype here"),
    ("--gpu-memory-utilization --mem-fraction-static --swap-space", "use --memory-limit, in GiB for all models"),
    ("--api-key --api-key-file", "it is --api-keys here"),
    ("--allowed-origins", "it is --cors-origins here"),
    ("--ssl-key-file --ssl-cert-file --ssl-keyfile --ssl-certfile", _PROXY),
    ("-to --timeout", "it is --request-timeout here"),
    ("--keepalive --sleep-idle-seconds", "models stay as long as --memory-limit allows"),
    ("--no-webui --no-ui", "it is --page false here"),
    ("--webui --ui", "leave it out: the page is there, unless --page false"),
    ("--metrics --enable-metrics", "leave it out: /metrics is always there"),
    ("--slots --props --no-slots", _MISSING),
    ("--cache-ram -cram --cache-reuse --cache-prompt", "it is --prefix-cache-mb here"),
    ("--enable-prefix-caching --enable-chunked-prefill", "leave it out: it is on, see --prefix-cache-mb"),
    ("--no-enable-prefix-caching --disable-radix-cache --no-cache-prompt", "it is --prefix-cache-mb 0 here"),
    ("--slot-save-path", "use --prefix-cache-dir"),
    ("-md --model-draft --draft-max --draft-min --speculative-config", "drafts need no model here: --draft"),
    ("-v --verbose -lv --verbosity --log-verbosity", "it is --log-level debug here"),
    ("--uvicorn-log-level --log-disable --disable-log-requests --disable-log-stats", "it is --log-level here"),
    ("--log-file", "send the standard error to a file; see --log-format"),
    ("-n --predict --n-predict", "it is the field max_tokens of each request here"),
    ("--temp --temperature --top-k --top-p --min-p --seed -s --repeat-penalty --presence-penalty", _REQUEST),
    ("--frequency-penalty --logit-bias -l --ignore-eos --grammar --json-schema -j --format", _REQUEST),
    ("--override-generation-config", f"{_REQUEST}; see --generation-config"),
    ("--reasoning-budget", "it is the field max_reasoning_tokens of each request here"),
    ("--think --reasoning-effort", "it is the field reasoning_effort of each request here"),
    ("--jinja --no-jinja --chat-template --chat-template-file", _TEMPLATE),
    ("--chat-template-kwargs --default-chat-template-kwargs", "it is the field chat_template_kwargs of each request"),
    ("--tool-call-parser --enable-auto-tool-choice --reasoning-parser --enable-reasoning --reasoning-format", _FOUND),
    ("-fa --flash-attn --mlock --mmap --no-mmap --no-warmup --enforce-eager", _NOTHING),
    ("--tokenizer --tokenizer-mode --trust-remote-code --numa --no-kv-offload -nkvo", _NOTHING),
    ("--attention-backend --load-format", _NOTHING),
    ("-ctk --cache-type-k -ctv --cache-type-v --kv-cache-dtype --kv-unified", _MISSING),
    ("--lora --enable-lora --mmproj -mm --embedding --embeddings", _MISSING),
    ("--rerank --reranking --pooling --task --runner", _MISSING),
)  # fmt: skip

FLAGS = {flag: instead for flags, instead in _ROWS for flag in flags.split()}
