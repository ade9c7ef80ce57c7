"""What a browser has of its own, without any client: ``EventSource`` and ``WebSocket`` against the API."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator.answers import answer as said
from tests.client.cutter import Cutter
from tests.page.conftest import Arrive
from tests.page.demo import Demo

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

MESSAGE = "How do I reset my password? #tokens=150 #rate=60"
ENTER = """
  const {token} = JSON.parse(sessionStorage.getItem('hyperleap.token'));
  const call = async (path, body) => (await fetch(path, {method: 'POST', headers: {authorization: `Bearer ${token}`,
    'content-type': 'application/json', prefer: 'respond-async'}, body: JSON.stringify(body)})).json();
  const {id: conversation} = await call('/v1/conversations', {});
"""
EVENT_SOURCE = f"""async ([base, message]) => {{
  {ENTER}
  const {{turn_id}} = await call(`/v1/conversations/${{conversation}}/turns`, {{message}});
  const path = `/v1/turns/${{turn_id}}/events`;
  const {{ticket}} = await call('/v1/tickets', {{path}});
  return new Promise((resolve) => {{
    const source = new EventSource(`${{base}}${{path}}?ticket=${{ticket}}`);
    const told = {{text: '', ids: [], opened: 0}};
    source.onopen = () => told.opened++;
    source.addEventListener('message.delta', ({{data, lastEventId}}) => {{
      told.text += JSON.parse(data).text;
      told.ids.push(Number(lastEventId.split('.')[1]));
    }});
    source.addEventListener('turn.completed', ({{data}}) => {{ told.whole = JSON.parse(data).text; }});
    source.onerror = () => {{  // after a cut it comes back by itself; after the ending it is told that there is no more
      if (source.readyState === EventSource.CLOSED) resolve(told);
    }};
  }});
}}"""
WEB_SOCKET = f"""async ([base, message]) => {{
  {ENTER}
  const told = {{text: '', ids: [], opened: 0}};
  let turn = '', cursor = '';
  const open = (resolve) => {{
    const socket = new WebSocket(`${{base.replace('http', 'ws')}}/v1/ws`, ['hyperleap.chat.v1', `hgt.${{token}}`]);
    socket.onopen = () => {{
      told.opened++;
      told.protocol = socket.protocol;
      socket.send(JSON.stringify(turn ? {{type: 'subscribe', turn_id: turn, ...(cursor ? {{after: cursor}} : {{}})}}
        : {{type: 'turn.start', conversation_id: conversation, message, client_message_id: 'm1'}}));
    }};
    socket.onclose = () => {{ if (!told.whole) open(resolve); }};
    socket.onmessage = ({{data: frame}}) => {{
      const {{id, event, data}} = JSON.parse(frame);
      if (event === 'ack') turn = data.turn_id ?? turn;
      cursor = id ?? cursor;
      if (event === 'message.delta') {{
        told.text += data.text;
        told.ids.push(Number(id.split('.')[1]));
      }} else if (event === 'turn.completed') {{
        told.whole = data.text;
        socket.close();
        resolve(told);
      }}
    }};
  }};
  return new Promise(open);
}}"""


@pytest.mark.parametrize("script", [EVENT_SOURCE, WEB_SOCKET], ids=["EventSource", "WebSocket"])
async def test_browsers_own_reads_an_answer_that_is_cut(arrive: Arrive, demo: Demo, script: str) -> None:
    """Cut twice in mid-answer, the platform's own means bring every character once."""
    visitor = await arrive()
    visitor.expects_failures = True
    async with Cutter(demo.url, (1_500, 2_500)) as proxy:
        await visitor.page.goto(f"{demo.url}/v1/nothing")  # of the gateway's origin, and without the chat page's policy
        told: dict[str, Any] = await visitor.page.evaluate(script, [proxy.url, MESSAGE])
        assert proxy.cut == 2
    assert told["text"] == told["whole"] == said(MESSAGE).text
    assert told["ids"] == sorted(set(told["ids"]))
    assert told["opened"] == 3
    assert told.get("protocol", "hyperleap.chat.v1") == "hyperleap.chat.v1"
