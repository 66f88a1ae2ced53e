"""The parts of the server by themselves: turns of clients, text as it grows, draws of rows, addresses of pictures, keys."""

import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lvlm_guard import InputError, loading
from lvlm_guard.cli.serving import read_stacks
from lvlm_guard.serving.admission import Admission, KeyRing
from lvlm_guard.serving.answer_rows import OpenJob
from lvlm_guard.serving.answer_text import AnswerText, UnstableText
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.engine import ChatJob, SampledChoice
from lvlm_guard.serving.fair_queue import FairQueue
from lvlm_guard.serving.remote_pictures import RemotePictures, is_public
from lvlm_guard.serving.row_processors import RowSampler
from lvlm_guard.serving.running import ListeningPlace
from lvlm_guard.serving.special_texts import SpecialTexts


def job(client, stack="vcd", choices=1, name=""):
    return OpenJob(
        ChatJob(name, client, [], True, stack, None, 4, (), choices, False, time.monotonic() + 60), lambda _: None
    )


def take_names(queue, rows):
    return [request.job.id for request in queue.take(rows)]


def test_clients_take_turns():
    queue = FairQueue(lambda request: request.job.stack, 0)
    for index in range(5):
        queue.put(job("busy", name=f"busy{index}"))
    queue.put(job("late", name="late"))
    assert take_names(queue, 3) == ["busy0", "late", "busy1"]
    assert take_names(queue, 9) == ["busy2", "busy3", "busy4"]


def test_a_batch_holds_one_group_and_the_next_turn_is_that_of_who_waited():
    queue = FairQueue(lambda request: request.job.stack if request.job.stack != "apart" else None, 0)
    for name, stack in (("a", "vcd"), ("b", "pai"), ("c", "apart"), ("d", "vcd"), ("e", "apart")):
        queue.put(job(name, stack, name=name))
    assert take_names(queue, 4) == ["a", "d"]
    assert take_names(queue, 4) == ["b"]
    assert take_names(queue, 4) == ["c"]
    assert take_names(queue, 4) == ["e"]
    assert len(queue) == 0


def test_choices_count_as_rows():
    queue = FairQueue(lambda request: request.job.stack, 0)
    for name, choices in (("a", 2), ("b", 3), ("c", 1)):
        queue.put(job("me", choices=choices, name=name))
    assert take_names(queue, 4) == ["a", "c"]
    assert take_names(queue, 4) == ["b"]


def test_a_closed_queue_gives_what_is_left_and_then_nothing():
    queue = FairQueue(lambda request: request.job.stack, 10)
    queue.put(job("a", name="a"))
    queue.close()
    assert not queue.put(job("b"))
    assert take_names(queue, 4) == ["a"]
    assert queue.take(4) == []


def test_the_first_of_several_waits_for_the_others():
    queue = FairQueue(lambda request: request.job.stack, 5)
    queue.put(job("a", name="a"))
    threading.Timer(0.1, lambda: queue.put(job("b", name="b"))).start()
    assert take_names(queue, 2) == ["a", "b"]  # as soon as the batch is full


WORDS = {0: " what", 1: " is", 2: ".", 3: " \n", 4: "\ufffd", 5: "é", 6: " END"}


def spell(ids):
    text = "".join(WORDS[token] for token in ids)
    return text.replace("\ufffd\ufffd", "日")


def pieces(tokens, stops=()):
    text = AnswerText(spell, stops)
    sent = [text.add(token) for token in tokens]
    return sent, text.close(), text


def test_text_is_sent_when_it_is_final():
    sent, last, _ = pieces([0, 3, 1, 2])
    assert sent == ["what", "", " \n is", "."]
    assert last == ""


def test_half_a_character_waits_for_the_other_half():
    sent, _, _ = pieces([0, 4, 4, 5])
    assert sent == ["what", "", "日", "é"]
    assert pieces([0, 4])[1] == "\ufffd"  # it never came


def test_white_space_at_the_ends_is_left_out():
    sent, last, _ = pieces([3, 0, 3])
    assert "".join(sent) + last == "what"


def test_part_of_a_stop_is_held_back():
    sent, last, text = pieces([0, 1, 2], ["is it"])
    assert sent == ["what", "", " is."]
    sent, last, text = pieces([0, 1, 2], ["is."])
    assert text.is_stopped
    assert "".join(sent) + last == "what"


def test_text_that_is_decoded_otherwise_later_is_an_error():
    text = AnswerText(lambda ids: "abc"[: len(ids)] if len(ids) < 3 else "xyz")
    assert [text.add(token) for token in (1, 1, 1)] == ["a", "b", ""]
    with pytest.raises(UnstableText):
        text.close()


def warp(scores, choice, top_k):
    warpers = [TemperatureLogitsWarper(choice.temperature)] if choice.temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(choice.top_p)] if choice.top_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("top_k", [0, 5])
def test_draws_follow_the_warped_distribution_of_transformers(top_k):
    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    choice = SampledChoice(1.4, 0.8, 3)
    expected = warp(scores, choice, top_k)[0]
    rows = 20_000
    sampler = RowSampler([SampledChoice(1.4, 0.8, seed) for seed in range(rows)], top_k)
    drawn = sampler(None, scores.expand(rows, -1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=40) / rows
    assert set(drawn.tolist()) <= set(expected.nonzero().flatten().tolist())
    assert (shares - expected).abs().max() < 0.02
    assert 1 < int((expected > 0).sum()) < 40


def test_a_row_draws_the_same_beside_any_others():
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    choices = [SampledChoice(0.5 + index, 1 - index / 10, index) for index in range(6)]
    together = RowSampler(choices, 0)
    first, second = together(None, scores).argmax(-1), together(None, scores.flip(1)).argmax(-1)
    for row, choice in enumerate(choices):
        alone = RowSampler([choice], 0)
        assert alone(None, scores[row : row + 1]).argmax() == first[row]
        assert alone(None, scores.flip(1)[row : row + 1]).argmax() == second[row]
    assert len(set(first.tolist())) > 2


def test_top_p_of_nothing_is_greedy():
    scores = torch.randn(3, 9)
    drawn = RowSampler([SampledChoice(2.0, 0.0, seed) for seed in range(3)], 0)(None, scores)
    assert (drawn.argmax(-1) == scores.argmax(-1)).all()
    assert (drawn > -torch.inf).sum(-1).tolist() == [1, 1, 1]


PRIVATE = (
    "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1", "::",
    "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111"])
def test_an_address_that_is_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/",
        "https://[::ffff:127.0.0.1]/", "http://me@127.0.0.1/", "http://127.0.0.1:22/", "ftp://a/", "http:///", "http://[/",
        "gopher://127.0.0.1:70/",
    ],
)  # fmt: skip
def test_a_url_that_leads_inside(url):
    with pytest.raises(InputError):
        RemotePictures(seconds=5).fetch(url)


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        kind = self.path.partition("?")[0]
        if kind == "/to":
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        self.send_response(404 if kind == "/none" else 200)
        self.end_headers()
        try:
            for _ in range({"/long": 50, "/slow": 100}.get(kind, 1)):
                self.wfile.write(b"picture")
                time.sleep(0.1 if kind == "/slow" else 0)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pages():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def fetch(pages, path, **limits):
    return RemotePictures(allows=lambda _: True, ports=(pages,), **limits).fetch(f"http://127.0.0.1:{pages}{path}")


def test_a_picture_is_fetched_through_redirects(pages):
    assert fetch(pages, "/a") == b"picture"
    assert fetch(pages, "/to?/to?/a") == b"picture"


def test_what_is_not_fetched(pages):
    for path, words in (
        ("/none", "404"),
        ("/long", "bytes"),
        ("/to?/to?/to?/to?/a", "redirects"),
        ("/to?file:///etc/passwd", "URL"),
    ):
        with pytest.raises(InputError, match=words):
            fetch(pages, path, largest=100)


def test_every_redirect_is_checked(pages):
    def only_first(address):
        return str(address) == "127.0.0.1"

    remote = RemotePictures(allows=only_first, ports=(pages,))
    with pytest.raises(InputError, match="not public"):
        remote.fetch(f"http://127.0.0.1:{pages}/to?http://127.0.0.2:{pages}/a")


def test_all_addresses_of_a_name_are_checked_and_it_is_looked_up_once(pages, monkeypatch):
    calls = []

    def resolve(host, port, **_):
        calls.append(host)
        addresses = ("127.0.0.1",) if host == "good.example" else ("1.1.1.1", "10.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    remote = RemotePictures(allows=lambda address: str(address) != "10.0.0.1", ports=(pages,), seconds=5)
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, *a, **k: resolve(host, port) if "example" in host else real(host, port, *a, **k),
    )
    with pytest.raises(InputError, match="not public"):
        remote.fetch(f"http://mixed.example:{pages}/a")
    assert remote.fetch(f"http://good.example:{pages}/a") == b"picture"
    assert calls == ["mixed.example", "good.example"]


def test_a_slow_server_is_left(pages):
    started = time.monotonic()
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(pages, "/slow", seconds=0.5)
    assert time.monotonic() - started < 5


def test_keys():
    ring = KeyRing(["first", "second"])
    names = {ring.identify(f"Bearer {key}", "1.2.3.4") for key in ("first", "second")}
    assert len(names) == 2
    assert not any("first" in name or "second" in name for name in names)
    for header in (None, "", "first", "Basic first", "Bearer third", "Bearer ", "Bearer first second", "Bearer \udcff"):
        with pytest.raises(ApiError) as refused:
            ring.identify(header, "1.2.3.4")
        assert refused.value.status == 401
    assert KeyRing().identify(None, "1.2.3.4") == "1.2.3.4"


def test_no_client_takes_all_places():
    admission = Admission(4, lambda: 2.2)
    held = [admission.enter("busy") for _ in range(3)]
    for place in held:
        place.__enter__()
    with pytest.raises(ApiError) as refused, admission.enter("busy"):
        pass
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "3"})
    with admission.enter("other"), pytest.raises(ApiError), admission.enter("third"):
        pass
    for place in held:
        place.__exit__(None, None, None)
    assert len(admission) == 0


def test_an_open_address_needs_a_key_or_a_word():
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        with pytest.raises(InputError, match="--api-key"):
            ListeningPlace(host)
        assert ListeningPlace(host, keys=("secret",)).host == host
        assert ListeningPlace(host, is_open=True).host == host
    assert ListeningPlace("127.0.0.1").port == ListeningPlace("localhost").port == ListeningPlace("::1").port
    with pytest.raises(InputError, match="empty"):
        ListeningPlace(keys=("",))


def test_stacks_by_name():
    stacks = read_stacks(["vcd", "both=vcd+pai"])
    assert {name: stack.names for name, stack in stacks.items()} == {
        "vcd": ("vcd",),
        "both": ("vcd", "pai"),
        "plain": (),
    }
    assert next(iter(read_stacks(["plain", "vcd"]))) == "plain"
    for texts in (["vcd", "vcd"], ["=vcd"], ["plain=vcd"], ["vdc"]):
        with pytest.raises(InputError):
            read_stacks(texts)


def test_special_tokens_in_another_spelling():
    _, processor = loading.load("testbed", "cpu")
    special = SpecialTexts(processor)
    special.check("what is this ?", "text")
    special.check("a word that nobody knows", "text")  # the unknown token is no special one
    for text in ("<image>", "a <image> b", "a<eos>"):
        with pytest.raises(ApiError, match="token of its own"):
            special.check(text, "text")
