"""The page's pure modules, loaded from the gateway into a browser and fed by hand."""

from __future__ import annotations

import pytest

from tests.page.conftest import Arrive

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SPLIT_SSE = """async () => {
  const {SseDecoder} = await import('/page/sse.js');
  const wire = '\\ufeffretry: 2000\\n\\n: hello\\nid: t.1\\nevent: a\\ndata: {"x":1}\\n\\n'
    + 'id: t.2\\r\\nevent: b\\r\\ndata: one\\r\\ndata:two\\r\\n\\r\\n'
    + 'data: ü€😀\\r\\revent: c\\n\\nid\\ndata\\n\\ndata: lost';
  const whole = JSON.stringify(new SseDecoder().push(wire));
  for (let seed = 1; seed < 400; seed++) {
    const decoder = new SseDecoder(), got = [];
    let random = seed;
    for (let i = 0; i < wire.length;) {
      random = (random * 1103515245 + 12345) % 2147483648;
      const n = 1 + random % (seed % 9 + 1);
      got.push(...decoder.push(wire.slice(i, i + n)));
      i += n;
    }
    if (JSON.stringify(got) !== whole) return {seed, got, whole};
  }
  return JSON.parse(whole);
}"""

REPLAYS = """async () => {
  const {Turn} = await import('/page/turn.js');
  const text = 'a😀b'.repeat(30), points = [...text];
  const delta = (from, to) => ['T.' + (2 + to), 'message.delta', {text: points.slice(from, to).join('')}];
  const results = [];
  for (let seed = 1; seed < 200; seed++) {
    const turn = new Turn();
    let random = seed, at = 0;
    const next = (n) => (random = (random * 1103515245 + 12345) % 2147483648) % n;
    turn.take('T.1', 'turn.started', {});
    turn.take('T.2', 'message.started', {message_id: 'm'});
    while (at < points.length) {
      const from = Math.max(0, at - next(9));          // a replay that begins before the cursor, merged anew
      const to = Math.min(points.length, from + 1 + next(12));
      turn.take(...delta(from, to));
      at = Math.max(at, to);
    }
    turn.take('T.1', 'turn.started', {});
    turn.take('T.500', 'turn.completed', {text, message_id: 'm', usage: null, finish_reason: 'stop'});
    turn.take(...delta(0, 5));
    results.push(turn.intact && turn.text === text && turn.state === 'completed');
  }
  return results.every(Boolean);
}"""

GAP = """async () => {
  const {Turn} = await import('/page/turn.js');
  const turn = new Turn();
  turn.take('T.3', 'message.delta', {text: 'abc'});
  turn.take('T.9', 'message.delta', {text: 'ghi'});
  turn.take('T.10', 'turn.completed', {text: 'abcdefghi', usage: null});
  return [turn.text, turn.intact];
}"""

QUEUED = """async () => {
  const {Turn} = await import('/page/turn.js');
  const turn = new Turn();
  const states = [turn.state];
  const take = (...event) => { turn.take(...event); states.push(turn.state); };
  take('T.1', 'turn.started', {});
  take('T.2', 'turn.queued', {position: 5, wait_s: 20});
  take('T.3', 'turn.queued', {position: 1, wait_s: 2});
  take('T.4', 'message.started', {message_id: 'm'});
  take('T.6', 'message.delta', {text: 'Hi'});
  take('T.7', 'turn.completed', {text: 'Hi', usage: null});
  return [states, turn.queue, turn.intact];
}"""


async def test_event_stream_split_anywhere_gives_the_same_events(arrive: Arrive) -> None:
    """Bytes arrive in any pieces: in a line end, in a field, in the middle of anything."""
    visitor = await arrive()
    events = await visitor.page.evaluate(SPLIT_SSE)
    assert events == [
        {"id": "t.1", "event": "a", "data": '{"x":1}'},
        {"id": "t.2", "event": "b", "data": "one\ntwo"},
        {"id": "t.2", "event": "message", "data": "ü€😀"},
        {"id": "", "event": "message", "data": ""},
    ]


async def test_replay_that_overlaps_or_merges_deltas_changes_nothing(arrive: Arrive) -> None:
    """A position is a cursor: deltas that were seen, wholly or in part, are not shown twice."""
    visitor = await arrive()
    assert await visitor.page.evaluate(REPLAYS) is True


async def test_ending_has_the_last_word_on_the_text(arrive: Arrive) -> None:
    """Whatever was lost on the way, the whole answer stands in the ending; that it was lost is known."""
    visitor = await arrive()
    assert await visitor.page.evaluate(GAP) == ["abcdefghi", False]


async def test_turn_in_line_shows_its_place_until_it_is_sent(arrive: Arrive) -> None:
    """A queued turn says so with its last place, and waits for its answer as any other once that has begun."""
    visitor = await arrive()
    states, queue, intact = await visitor.page.evaluate(QUEUED)
    assert states == ["waiting", "waiting", "queued", "queued", "waiting", "streaming", "completed"]
    assert (queue, intact) == ({"position": 1, "wait_s": 2}, True)
