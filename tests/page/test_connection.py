"""Getting in, and what happens when the way to the gateway breaks."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Request, Route, WebSocket, WebSocketRoute, expect

from tests.page.conftest import Arrive
from tests.page.demo import Demo

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

WORDS = " ".join(f"w{i:03}" for i in range(120))
NO_SOCKETS = """window.WebSocket = class {
  static OPEN = 1;
  readyState = 3;
  constructor() { setTimeout(() => this.onclose?.({code: 1006})); }
  close() {}
};"""

CUTTABLE_STREAMS = """
  const fetchWhole = window.fetch;
  window.fetch = async (...asked) => {
    const response = await fetchWhole(...asked);
    if (!response.headers.get('content-type')?.startsWith('text/event-stream')) return response;
    const reader = response.body.getReader();
    const cut = new Promise((_, fail) => { window.cutStream = () => fail(new TypeError('network error')); });
    const body = new ReadableStream({
      async pull(stream) {
        try {
          const {done, value} = await Promise.race([reader.read(), cut]);
          done ? stream.close() : stream.enqueue(value);
        } catch (error) {
          reader.cancel();
          stream.error(error);
        }
      },
    });
    return new Response(body, {status: response.status, headers: response.headers});
  };
"""


async def test_key_in_the_link_leaves_the_address_bar_and_no_url_carries_it(arrive: Arrive, demo: Demo) -> None:
    """Neither the key nor the token that it opens ever stands in a URL that is sent or shown."""
    visitor = await arrive()
    assert "key=" not in visitor.page.url
    await visitor.ask("Hello #tokens=5 #rate=0")
    assert "key=" not in visitor.page.url
    assert visitor.requests
    assert not any(demo.publishable_key in url or "hgt_" in url for url in visitor.requests)
    await visitor.page.reload()
    await expect(visitor.see("answer")).to_have_count(1)


async def test_visitor_finds_earlier_conversations_again(arrive: Arrive) -> None:
    """A new session of the same browser is the same visitor: the conversation is listed, and opens."""
    first = await arrive()
    await first.ask("Remember the albatross #echo #rate=0")
    second = await arrive()
    await expect(second.see("greeting")).to_be_visible()
    await second.see("conversation").first.click()
    await expect(second.see("answer-text")).to_have_text(["Remember the albatross"])
    await expect(second.see("title")).to_contain_text("Remember the albatross")
    await second.page.go_back()
    await expect(second.see("greeting")).to_be_visible()


async def test_no_key_shows_a_form_that_lets_one_in(arrive: Arrive, demo: Demo) -> None:
    """Someone without a key is told where to get one, and may paste it."""
    visitor = await arrive(enter=False)
    await visitor.go()
    await expect(visitor.see("credential-form")).to_be_visible()
    await visitor.see("credential").fill("  " + demo.publishable_key + " ")
    await visitor.see("enter").click()
    await expect(visitor.see("status")).to_have_attribute("data-state", "live")
    await visitor.ask("Hello #tokens=5 #rate=0")


@pytest.mark.parametrize(
    ("pasted", "words"), [("hgs_demo.a.b", "That is a secret key."), ("hello", "That does not look like a key.")]
)
async def test_form_refuses_what_cannot_be_a_key(arrive: Arrive, pasted: str, words: str) -> None:
    """A secret key is refused before it is kept or sent anywhere."""
    visitor = await arrive(enter=False)
    await visitor.go()
    await visitor.see("credential").fill(pasted)
    await visitor.see("enter").click()
    await expect(visitor.see("credential-problem")).to_contain_text(words)
    assert await visitor.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])") == "[{},{}]"


async def test_wrong_key_says_so(arrive: Arrive, demo: Demo) -> None:
    """A key that the gateway does not know leads back to the form, with words."""
    visitor = await arrive(enter=False)
    visitor.expects_failures = True
    await visitor.go(f"key={demo.publishable_key[:-4]}AAAA")
    await expect(visitor.see("credential-problem")).to_contain_text("This key or token was not accepted.")


async def test_session_token_of_a_backend_lets_in(arrive: Arrive, demo: Demo) -> None:
    """A token that a backend minted with its secret key works in the link as a key does."""
    visitor = await arrive(enter=False)
    answer = await visitor.page.request.post(
        f"{demo.url}/v1/sessions", headers={"authorization": f"Bearer {demo.secret_key}"}, data={"user_id": "u1"}
    )
    await visitor.enter(f"token={(await answer.json())['token']}")
    assert "token=" not in visitor.page.url
    await visitor.ask("Hello #tokens=5 #rate=0")
    await visitor.page.reload()
    await expect(visitor.see("answer")).to_have_count(1)


async def test_token_of_another_day_is_replaced_in_silence(arrive: Arrive, transport: str) -> None:
    """A kept token that the gateway no longer takes costs nobody anything: the key opens a new session."""
    visitor = await arrive(transport)
    visitor.expects_failures = True
    await visitor.page.evaluate("""() => {
      const held = JSON.parse(sessionStorage.getItem('hyperleap.token'));
      sessionStorage.setItem('hyperleap.token', JSON.stringify({...held, token: held.token.slice(0, -8) + 'AAAAAAAA'}));
    }""")
    await visitor.page.reload()
    await expect(visitor.see("status")).to_have_attribute("data-state", "live")
    await visitor.ask("Hello #tokens=5 #rate=0")


async def test_lost_socket_in_mid_answer_picks_up_where_it_was(arrive: Arrive) -> None:
    """A dropped socket is told calmly, comes back by itself, and not a character is lost or repeated."""
    visitor = await arrive(enter=False)
    sockets: list[WebSocketRoute] = []
    cursors: list[str] = []

    def connect(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sockets.append(socket)

        def forward(frame: str | bytes) -> None:
            command = json.loads(frame)
            if command["type"] == "subscribe" and "after" in command:
                cursors.append(command["after"])
            server.send(frame)

        socket.on_message(forward)

    await visitor.page.route_web_socket("**/v1/ws", connect)
    await visitor.enter()
    await visitor.say(f"{WORDS} #echo #rate=25")
    for length in (40, 120, 240):
        await visitor.wait_for_text(length)
        await sockets[-1].close(code=1012, reason="draining")
    assert await visitor.wait_for_end() == WORDS
    assert await visitor.is_intact()
    assert len(sockets) == 4
    positions = [int(cursor.rsplit(".", 1)[1]) for cursor in cursors]
    assert len(positions) == 3
    assert sorted(set(positions)) == positions  # each connection went on further along


async def test_lost_connection_that_stays_away_is_said(arrive: Arrive, transport: str) -> None:
    """While the browser is offline a banner says so calmly; it goes when the network is back, and the chat goes on."""
    visitor = await arrive(transport)
    visitor.expects_failures = True
    await visitor.page.context.set_offline(True)
    await expect(visitor.see("banner")).to_contain_text("You are offline.")
    await expect(visitor.see("status")).to_have_attribute("data-state", "offline")
    await visitor.page.context.set_offline(False)
    await expect(visitor.see("banner")).to_be_hidden()
    await visitor.ask("Hello #tokens=5 #rate=0")


@pytest.mark.slow  # waits out the page's back-off
async def test_gateway_out_of_reach_is_said_and_the_message_waits_for_it(arrive: Arrive) -> None:
    """With no gateway to reach the page says so and goes on trying; a message written meanwhile is sent once, later."""
    visitor = await arrive(enter=False)
    sockets: list[WebSocketRoute] = []
    gone = False

    async def connect(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        if gone:
            await socket.close(code=1011)
        else:
            socket.connect_to_server()

    await visitor.page.route_web_socket("**/v1/ws", connect)
    await visitor.enter()
    visitor.expects_failures = True
    await visitor.ask("first #echo #rate=0")
    gone = True
    await visitor.page.route("**/v1/**", lambda route: route.abort())
    await sockets[-1].close(code=1012)
    await expect(visitor.see("banner")).to_contain_text("Connection lost")
    tried = len(sockets)
    await visitor.say("second #echo #rate=0")
    while len(sockets) < tried + 2:  # connections come and go, the message waits
        await visitor.page.wait_for_timeout(50)
    await expect(visitor.see("question").last).to_have_attribute("data-state", "sending")
    gone = False
    await visitor.page.unroute("**/v1/**")
    await expect(visitor.see("answer-text")).to_have_text(["first", "second"], timeout=40_000)
    await expect(visitor.see("banner")).to_be_hidden()
    assert len((await visitor.record())["messages"]) == 4


async def test_no_socket_falls_back_to_server_sent_events(arrive: Arrive) -> None:
    """Where something on the way forbids sockets the page goes on over plain HTTP by itself."""
    visitor = await arrive(enter=False)
    await visitor.page.add_init_script(NO_SOCKETS)
    await visitor.enter()
    await expect(visitor.see("status")).to_have_attribute("data-transport", "sse")
    assert await visitor.ask(f"{WORDS} #echo #rate=0") == WORDS
    assert await visitor.is_intact()


async def test_stream_cut_in_mid_answer_picks_up_where_it_was(arrive: Arrive) -> None:
    """Over server-sent events a cut stream is resumed from the last event, without loss or repetition."""
    visitor = await arrive("sse", enter=False)
    await visitor.page.add_init_script(CUTTABLE_STREAMS)
    cursors: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith("/events"):
            cursors.append(request.headers.get("last-event-id", ""))

    visitor.page.on("request", note)
    await visitor.enter()
    await visitor.say(f"{WORDS} #echo #rate=25")
    for length in (40, 120, 240):
        await visitor.wait_for_text(length)
        await visitor.page.evaluate("window.cutStream()")
    assert await visitor.wait_for_end() == WORDS
    assert await visitor.is_intact()
    await expect(visitor.see("banner")).to_be_hidden()
    positions = [int(cursor.rsplit(".", 1)[1]) for cursor in cursors]
    assert len(positions) == 3
    assert sorted(set(positions)) == positions  # each stream went on further along


async def test_message_that_could_not_be_sent_is_kept_and_sent_once_on_retry(arrive: Arrive) -> None:
    """A message that did not get through stays on the page with words and a way to send it again."""
    visitor = await arrive("sse")
    visitor.expects_failures = True
    await visitor.ask("first #echo #rate=0")
    lost = 0

    async def lose(route: Route) -> None:
        nonlocal lost
        lost += 1
        await route.abort()

    await visitor.page.route("**/turns", lose)
    await visitor.say("second #echo #rate=0")
    await expect(visitor.see("problem")).to_contain_text("The gateway cannot be reached.", timeout=15_000)
    assert lost > 1
    await visitor.page.unroute("**/turns")
    await visitor.see("retry").click()
    assert await visitor.wait_for_end() == "second"
    await expect(visitor.see("question")).to_have_count(2)
    assert len((await visitor.record())["messages"]) == 4


async def test_refused_message_can_be_edited(arrive: Arrive, transport: str) -> None:
    """A message that the gateway refuses is told in words and goes back to where it was written."""
    visitor = await arrive(transport)
    visitor.expects_failures = True
    nothing = "\x1f"  # white space to the gateway, and not to a browser
    await visitor.say(nothing)
    await expect(visitor.see("problem")).to_contain_text("The message is empty.")
    await visitor.see("edit").click()
    await expect(visitor.see("message")).to_have_value(nothing)
    await expect(visitor.see("question")).to_have_count(0)


async def test_message_that_is_too_long_stays_where_it_is_written(arrive: Arrive, transport: str) -> None:
    """Too long a message is told in words before anything is sent; what is long only in bytes is sent."""
    visitor = await arrive(transport, enter=False)
    sent: list[str] = []

    def note(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(str(json.loads(frame)["type"])))

    visitor.page.on("websocket", note)
    visitor.page.on("request", lambda request: sent.append(request.method))
    await visitor.enter()
    await visitor.say("x" * 40_000)
    await expect(visitor.see("problem")).to_contain_text("The message is too long.")
    await expect(visitor.see("message")).to_have_value("x" * 40_000)
    await expect(visitor.see("question")).to_have_count(0)
    assert sent.count("POST") == 1  # the session
    assert "turn.start" not in sent
    await visitor.ask("😀" * 31_900 + " #tokens=5 #rate=0")
    await expect(visitor.see("problem")).to_have_count(0)
    await expect(visitor.see("message")).to_have_value("")


async def test_closed_door_falls_back_to_server_sent_events(arrive: Arrive) -> None:
    """Where a tenant's users may not come in by WebSocket the page goes on over plain HTTP by itself."""
    visitor = await arrive(enter=False)

    async def refuse(socket: WebSocketRoute) -> None:
        problem = {"status": 403, "code": "door_closed", "title": "This door is closed to the tenant"}
        socket.send(json.dumps({"event": "error", "request_id": None, "data": problem}))
        await socket.close(code=4504, reason="door_closed")

    await visitor.page.route_web_socket("**/v1/ws", refuse)
    await visitor.enter()
    await expect(visitor.see("status")).to_have_attribute("data-transport", "sse")
    assert await visitor.ask(f"{WORDS} #echo #rate=0") == WORDS
    assert await visitor.is_intact()


@pytest.mark.parametrize("told", [True, False])
async def test_message_too_large_for_a_frame_is_sent_once(arrive: Arrive, *, told: bool) -> None:
    """A socket that is closed for a frame's size comes back without that frame; the message can be shortened."""
    visitor = await arrive(enter=False)
    sockets: list[WebSocketRoute] = []
    attempts: list[str] = []

    def connect(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sockets.append(socket)

        async def forward(frame: str | bytes) -> None:
            command = json.loads(frame)
            if command["type"] == "turn.start":
                attempts.append(command["message"])
                if command["message"] == "Too large":
                    if told:
                        problem = {"status": 413, "code": "frame_too_large", "title": "The frame is too large"}
                        socket.send(json.dumps({"event": "error", "request_id": None, "data": problem}))
                    await socket.close(code=1009)
                    return
            server.send(frame)

        socket.on_message(forward)

    await visitor.page.route_web_socket("**/v1/ws", connect)
    await visitor.enter()
    await visitor.ask("first #echo #rate=0")
    await visitor.say("Too large")
    await expect(visitor.see("problem")).to_contain_text("The message is too long.")
    await expect(visitor.see("question").last).to_have_attribute("data-state", "failed")
    while len(sockets) < 2:
        await visitor.page.wait_for_timeout(50)
    await expect(visitor.see("status")).to_have_attribute("data-state", "live")
    await visitor.see("edit").click()
    await expect(visitor.see("message")).to_have_value("Too large")
    assert await visitor.ask("second #echo #rate=0") == "second"
    assert attempts == ["first #echo #rate=0", "Too large", "second #echo #rate=0"]
    assert len(sockets) == 2
    await expect(visitor.see("question")).to_have_count(2)


async def test_broken_delivery_of_one_turn_is_mended_on_the_same_socket(arrive: Arrive) -> None:
    """A turn whose events stop coming is asked for again after its last, until that succeeds; the socket stays."""
    visitor = await arrive(enter=False)
    sockets: list[WebSocketRoute] = []
    cursors: list[str] = []
    delivered: list[str] = []
    again: set[str] = set()
    broken = False

    def connect(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sockets.append(socket)
        problem = {"status": 503, "code": "store_unavailable", "title": "The conversation store is unavailable"}

        def down(frame: str | bytes) -> None:
            nonlocal broken
            event = json.loads(frame)
            if event.get("request_id") in again:
                broken = False  # the new delivery follows its ack; what the old one still had is lost, as it would be
            if "turn_id" not in event:
                socket.send(frame)
            elif not broken:
                socket.send(frame)
                delivered.append(event["id"])
                if len(delivered) == 20:
                    broken = True
                    about = {"turn_id": event["turn_id"], "conversation_id": event["conversation_id"]}
                    socket.send(json.dumps({"event": "error", "request_id": None, **about, "data": problem}))

        def up(frame: str | bytes) -> None:
            command = json.loads(frame)
            if command["type"] == "subscribe" and "turn_id" in command:
                cursors.append(command["after"])
                if len(cursors) == 1:
                    refusal = {"event": "error", "request_id": command["request_id"], "data": problem}
                    socket.send(json.dumps(refusal))
                    return
                again.add(command["request_id"])
            server.send(frame)

        server.on_message(down)
        socket.on_message(up)

    await visitor.page.route_web_socket("**/v1/ws", connect)
    await visitor.enter()
    assert await visitor.ask(f"{WORDS} #echo #rate=25") == WORDS
    assert await visitor.is_intact()
    assert cursors == [delivered[19]] * 2
    assert len(sockets) == 1
    await expect(visitor.see("banner")).to_be_hidden()


async def test_limit_is_said_with_the_time_to_wait(arrive: Arrive) -> None:
    """A 429 becomes words and the seconds that the gateway names."""
    visitor = await arrive("sse")
    visitor.expects_failures = True
    await visitor.ask("Hello #tokens=5 #rate=0")
    problem = {"status": 429, "code": "rate_limited", "title": "Slow", "retry_after_s": 7, "request_id": "r-77"}
    await visitor.page.route(
        "**/turns",
        lambda route: route.fulfill(status=429, body=json.dumps(problem), content_type="application/problem+json"),
    )
    await visitor.say("Again")
    await expect(visitor.see("problem")).to_contain_text("Try again in 7 s.")
    await expect(visitor.see("problem")).to_contain_text("r-77")


async def test_conversation_of_someone_else_is_not_shown(arrive: Arrive) -> None:
    """A conversation id that is not this visitor's leads to words, not to an empty page."""
    visitor = await arrive(enter=False)
    visitor.expects_failures = True
    await visitor.enter(f"key={visitor.demo.publishable_key}&c=7f7a1f0e-0000-4000-8000-000000000000")
    await expect(visitor.see("failure")).to_contain_text("This conversation is not here")
