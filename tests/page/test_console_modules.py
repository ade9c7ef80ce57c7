"""The console's pure modules, loaded from the gateway into a browser and fed by hand."""

from __future__ import annotations

import pytest

from tests.page.operator import Operator

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SAMPLES = r"""async () => {
  const {readSamples, sumsBy} = await import('/admin/page/exposition.js');
  const text = '# HELP a {x="y"} 1\n# TYPE a counter\n'
    + 'a{worker="0",t="x}\\"{,=\\\\n\\n"} 2\n' + 'a{worker="1",t="x}\\"{,=\\\\n\\n"} 3.5 1700000000\n'
    + 'a{worker="0-old",t=""} 1e3\n' + 'b 4\n' + 'unwanted{t="x"} 9\n' + 'c{le="+Inf"} +Inf\n' + 'd NaN\n\n';
  const samples = readSamples(text, (name) => name !== 'unwanted');
  return [sumsBy(samples, 'a', ['t']), sumsBy(samples, 'b', []), samples.length, !Number.isNaN(samples.at(-1).value)];
}"""

QUANTILES = """async () => {
  const {Histogram} = await import('/admin/page/histogram.js');
  const bucket = (worker, le, value) => ({name: 'h_bucket', labels: {worker, le, t: 'x'}, value});
  const samples = [
    bucket('0', '0.1', 10), bucket('0', '0.2', 30), bucket('0', '0.4', 40), bucket('0', '+Inf', 50),
    bucket('1', '0.1', 0), bucket('1', '0.2', 20), bucket('1', '0.4', 40), bucket('1', '+Inf', 50),
    {name: 'h_count', labels: {worker: '0', t: 'x'}, value: 50},
    {name: 'h_sum', labels: {worker: '0', t: 'x'}, value: 12},
    {name: 'h_count', labels: {worker: '1', t: 'x'}, value: 50},
    {name: 'h_sum', labels: {worker: '1', t: 'x'}, value: 13},
    {name: 'h_count', labels: {worker: '1', t: 'empty'}, value: 0}, {name: 'h_other_sum', labels: {t: 'x'}, value: 1},
  ];
  const found = Histogram.read(samples, 'h', ['t']);
  const [{labels, histogram}] = found;
  const quantiles = [0.05, 0.3, 0.5, 0.8, 0.9].map((q) => histogram.quantile(q));
  return [found.length, labels, histogram.count, histogram.mean, ...quantiles];
}"""

PLACES = """async () => {
  const {lineOf} = await import('/admin/page/places.js');
  const table = {personas: {'a:{"': {persona_id: 'x,}'}}, origins: ['u', 'v'], limits: {user: {n: -1}}};
  const text = JSON.stringify(table, null, 2);
  const paths = ['personas.a:{".persona_id', 'origins[1]', 'origins.0', 'limits.user.n', 'limits.user.gone', 'gone'];
  return [paths.map((path) => lineOf(text, path)), text.split('\\n')[8].trim()];
}"""

TICKS = """async () => {
  const {ticks} = await import('/admin/page/scale.js');
  const {monies, money} = await import('/admin/page/numbers.js');
  const fits = [];
  for (let most = 1e-6; most < 1e9; most *= 1.37) {
    const marks = ticks(most, 5);
    const step = marks[1];
    const even = marks.every((mark, i) => Math.abs(mark - i * step) < step * 1e-6);
    fits.push(even && marks.at(-1) >= most * (1 - 1e-6) && marks.at(-2) < most && marks.length <= 7);
  }
  const small = monies([0.5, 0.00001, 0], 'EUR');
  const amounts = [[0.5, 0.00001, 0].map(small), money(0.00042, 'EUR'), money(1234.5, 'EUR')];
  return [fits.every(Boolean), ticks(0), ticks(3, 5, true), ...amounts];
}"""


async def test_scrape_of_several_workers_is_read_and_summed(operator: Operator) -> None:
    """Labels may hold braces, quotes and commas; a series that each worker tells is added up."""
    by_label, plain, read, is_number = await operator.page.evaluate(SAMPLES)
    assert by_label == [{"labels": ['x}"{,=\\n\n'], "value": 5.5}, {"labels": [""], "value": 1000}]
    assert plain == [{"labels": [], "value": 4}]
    assert (read, is_number) == (6, False)


async def test_percentiles_are_read_from_buckets_as_prometheus_reads_them(operator: Operator) -> None:
    """Buckets of all workers together, evenly spread within each; beyond the last bound only that is known."""
    count, labels, all_, mean, *quantiles = await operator.page.evaluate(QUANTILES)
    assert (count, labels, all_, mean) == (1, ["x"], 100, 0.25)
    values = [quantile["value"] for quantile in quantiles]
    assert values == pytest.approx([0.05, 0.15, 0.2, 0.4, 0.4])
    assert [quantile["above"] for quantile in quantiles] == [False, False, False, False, True]


async def test_field_of_a_problem_is_found_in_the_text(operator: Operator) -> None:
    """The line of a field, or of the nearest thing around it, whatever signs stand in names and strings."""
    lines, ninth = await operator.page.evaluate(PLACES)
    assert lines == [4, 9, 8, 13, 12, 0]
    assert ninth == '"v"'


async def test_axes_are_round_and_no_amount_is_shown_as_nothing(operator: Operator) -> None:
    """Ticks are even, cover the largest value and not a whole step more; what is too small for its column says so."""
    fits, none, whole, small, tiny, large = await operator.page.evaluate(TICKS)
    assert fits is True
    assert (none, whole) == ([0, 1], [0, 1, 2, 3])
    assert small == ["€0.500", "< €0.001", "€0.000"]
    assert (tiny, large) == ("€0.00042", "€1,234.50")
