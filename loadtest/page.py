"""Page: a run as one HTML file with everything inside, light and dark, for screens of any width.

An escaping template makes it. Only the plots are not escaped: they hold nothing but numbers and our own words.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from loadtest.objective import MEANINGS
from loadtest.plots import GRID, INK, plots
from loadtest.sample import Sample
from loadtest.table import GROUPS, comparison, figure, headline, parameters, reported_rows

# The page fetches and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DARK = {INK: "#e6edf3", GRID: "#30363d"}
# matplotlib writes each colour as a style.
PLOTS_IN_THE_DARK = "".join(
    f'svg [style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
    for light, dark in DARK.items()
    for kind in ("fill", "stroke")
)


def page(record: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The HTML of a record (see ``record``) and its samples."""
    rows = record["by_sparsity"]
    columns = [(key, point) for key, points in GROUPS.values() for point in points]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    return template.render(
        policy=POLICY,
        style=STYLE,
        headline=headline(record),
        record=record,
        rows=rows,
        groups=[(title, len(points)) for title, (_, points) in GROUPS.items()],
        columns=columns,
        cells={
            name: [figure(row[key][point] if row[key] else None) for key, point in columns]
            for name, row in rows.items()
        },
        plots=[(plot.title, plot.text, plot.svg) for plot in plots(samples, record["options"]["sparsities"])],
        reported=list(reported_rows(rows)),
        parameters={name: parameters(row["griffin"]) for name, row in rows.items() if row["griffin"]},
        meanings=MEANINGS,
        command=shlex.join(record["command"]),
        comparison=list(comparison(record)),
        figure=figure,
        json=json.dumps(record, indent=1),
    )


STYLE = f"""\
:root {{
  color-scheme: light dark; --ink: {INK}; --paper: #fff; --muted: #59636e; --line: {GRID}; --shade: #f6f8fa;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: {DARK[INK]}; --paper: #0d1117; --muted: #9198a1; --line: {DARK[GRID]}; --shade: #161b22; }}
  {PLOTS_IN_THE_DARK}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 0 1rem 3rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}}
h1 {{ margin: 1.5rem 0 .25rem; font-size: 1.6rem; }}
h2 {{ margin: 2.25rem 0 .5rem; font-size: 1.15rem; }}
p, li {{ max-width: 48rem; overflow-wrap: anywhere; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-weight: 600; }}
svg {{ width: 100%; height: auto; display: block; }}
svg text {{ font-family: inherit !important; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th:first-child, td:first-child, .words {{ text-align: left; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: var(--paper); }}
dt {{ font-weight: 600; }}
dd {{ margin: 0 0 .5rem; color: var(--muted); max-width: 48rem; }}
.notes {{ padding: .5rem 1rem .5rem 2rem; background: var(--shade); border-left: .25rem solid #d55e00; }}
pre {{ padding: .8rem 1rem; overflow-x: auto; background: var(--shade); font-size: .8rem; line-height: 1.4; }}
code {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
summary {{ cursor: pointer; }}
"""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>Load test of {{ record.server.model }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<main>
<h1>Load test</h1>
<p>{{ headline }}. {{ record.started_at }}</p>
{% if record.remarks %}
<ul class="notes">
{% for remark in record.remarks %}<li>{{ remark }}</li>
{% endfor %}</ul>
{% endif %}
<h2>Latency</h2>
<div class="table" tabindex="0" role="group" aria-label="Latency"><table>
<thead><tr><th></th><th colspan="3"></th>\
{% for title, width in groups %}<th colspan="{{ width }}">{{ title }}</th>{% endfor %}</tr>
<tr><th>sparsity</th><th>requests</th><th>failed</th><th>tokens/s</th>\
{% for _, point in columns %}<th>{{ point }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, row in rows.items() %}<tr><td>{{ name }}</td><td>{{ row.requests }}</td>\
<td>{{ row.errors.values() | sum }}</td><td>{{ figure(row.tokens_per_second) }}</td>
{% for cell in cells[name] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if parameters or comparison %}
<ul>
{% for text in comparison %}<li>{{ text }}</li>
{% endfor %}{% for name, text in parameters.items() %}<li>sparsity {{ name }}: {{ text }}</li>
{% endfor %}</ul>
{% endif %}
{% if record.options.objective %}
<h2>Goodput</h2>
<p>A good request was answered, and kept all these limits:</p>
<ul>
{% for name, limit in record.options.objective.items() %}\
<li>{{ meanings[name] }}: {{ "%g" | format(limit) }} ms at most</li>
{% endfor %}</ul>
<div class="table" tabindex="0" role="group" aria-label="Goodput"><table>
<thead><tr><th>sparsity</th><th>good</th><th>of requests</th><th>a second</th></tr></thead>
<tbody>
{% for name, row in rows.items() %}<tr><td>{{ name }}</td><td>{{ row.goodput.good }}</td>\
<td>{{ "-" if row.goodput.share is none else "%.0f %%" | format(row.goodput.share * 100) }}</td>\
<td>{{ figure(row.goodput.requests_per_second) }}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% if record.totals.errors %}
<h2>Errors</h2>
<div class="table" tabindex="0" role="group" aria-label="Errors"><table>
<thead><tr><th>sparsity</th><th>requests</th><th class="words">error</th>\
<th class="words">first message</th></tr></thead>
<tbody>
{% for name, row in rows.items() %}{% for error, count in row.errors.items() %}\
<tr><td>{{ name }}</td><td>{{ count }}</td><td class="words">{{ error }}</td>\
<td class="words">{{ row.error_messages.get(error, "") }}</td></tr>
{% endfor %}{% endfor %}</tbody></table></div>
{% endif %}
{% if plots %}
<h2>Plots</h2>
<div class="plots">
{% for title, text, svg in plots %}
<figure role="img" aria-label="{{ text }}"><figcaption>{{ title }}</figcaption>{{ svg | safe }}</figure>
{% endfor %}
</div>
{% endif %}
{% if reported %}
<h2>What the server reports</h2>
<p>Medians. The client's times count from when it sent a request. The difference is the median over requests: the time
that HTTP, the network and both programs take.</p>
<div class="table" tabindex="0" role="group" aria-label="Server and client"><table>
<thead><tr><th>sparsity</th><th class="words">what</th><th>server</th><th>client</th><th>difference</th></tr></thead>
<tbody>
{% for name, title, server, client, difference in reported %}<tr><td>{{ name }}</td><td class="words">{{ title }}</td>\
<td>{{ server }}</td><td>{{ client }}</td><td>{{ difference }}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
<h2>What was measured</h2>
<dl>
<dt>TTFT, time to first token</dt>
<dd>From the moment at which the request was due (in a closed loop: was sent) to the first chunk with text.</dd>
<dt>ITL, inter-token latency</dt>
<dd>The time between one chunk with text and the next, over all answers together.</dd>
<dt>TPOT, time per output token</dt>
<dd>For each answer: the time from its first text to its last token, over its tokens after the first.</dd>
<dt>End to end</dt>
<dd>From the moment at which the request was due (in a closed loop: was sent) to the end of its answer.</dd>
<dt>tokens/s</dt>
<dd>The speed that one reader sees: tokens after the first over the time they took, over all answers together.</dd>
</dl>
<p>Percentiles are measured values (nearest rank) of answered requests: the p99 of fewer than 100 values is the largest.
</p>
<h2>How it was run</h2>
<pre><code>python -m loadtest {{ command }}</code></pre>
<details><summary>All figures and options, as JSON</summary>
<pre><code>{{ json }}</code></pre></details>
</main>
</body>
</html>
"""
