"""What concerns an HTTP/2 connection as a whole, which is h2's: SETTINGS, PING, the window for what we send. Sans-IO.

h2 is shown no frame of a stream. It takes 100 µs and more to open one and to read the head of its answer, 9 to 14 µs
for a DATA frame, closes its state machine at GOAWAY, and ends the connection where the RFC asks for the stream only.
"""

import contextlib

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RemoteSettingsChanged, WindowUpdated
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import Decoder

from gateway.upstream.origin import PoolSettings

MAX_FRAME_BYTES = 16_384  # what we announce; RFC 9113's smallest, and plenty for chat
_DEFAULT_WINDOW_BYTES = 65_535  # of a connection, whatever SETTINGS say (RFC 9113, 6.9.2)


class _H2(H2Connection):
    @property
    def has_to_send(self) -> bool:
        return bool(self._data_to_send)


class Control:
    """One connection's frames on stream 0, GOAWAY from the peer excepted, and PRIORITY and unknown ones on any."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._h2 = _H2(H2Configuration())
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )

    @property
    def decoder(self) -> Decoder:
        """For header blocks; h2 sets its limits as the peer acknowledges ours."""
        return self._h2.decoder

    @property
    def peer_settings(self) -> Settings:
        return self._h2.remote_settings

    @property
    def max_frame_bytes(self) -> int:
        """The longest payload that the peer takes."""
        return self._h2.max_outbound_frame_size

    @property
    def window_bytes(self) -> int:
        """What the peer takes now, on all streams together."""
        return self._h2.outbound_flow_control_window

    def sent(self, size_bytes: int) -> None:
        """Take what DATA frames used up off the window."""
        self._h2.outbound_flow_control_window -= size_bytes

    @property
    def has_to_send(self) -> bool:
        return self._h2.has_to_send

    def data_to_send(self) -> bytes:
        return self._h2.data_to_send()

    def greet(self) -> None:
        """Prepare the preface, our SETTINGS and the connection's window."""
        self._h2.initiate_connection()
        extra = self._settings.connection_window_bytes - _DEFAULT_WINDOW_BYTES
        if extra:
            self._h2.increment_flow_control_window(extra)

    def ping(self) -> None:
        self._h2.ping(b"hlgw-png")

    def say_goodbye(self, code: ErrorCodes) -> None:
        with contextlib.suppress(H2Error):
            self._h2.close_connection(code)

    def receive(self, raw: bytes) -> tuple[bool, bool]:
        """Act on one whole frame; says whether the peer's SETTINGS, and whether its window, changed.

        May raise anything on bytes from outside; where it is an H2Error, GOAWAY is in what there is to send.
        """
        has_settings = has_window = False
        for event in self._h2.receive_data(raw):
            if isinstance(event, RemoteSettingsChanged):
                has_settings = True
            elif isinstance(event, WindowUpdated):
                has_window = True
            # else PING (h2 answers), acknowledgements, extensions
        return has_settings, has_window
