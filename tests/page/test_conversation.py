"""Conversations, and the choice between several models."""

import re

import httpx
from playwright.sync_api import Page, Route, expect

from server.loader import Loaded
from server.settings import Settings
from tests.page.window import PHONE, Open, Watch, answer, both_done, choose, fits, pane, refused, run, state
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served
from tests.server.test_models import Shelf, several


def said(page: Page, name: str) -> list[str]:
    """The turns that a pane shows before its answer."""
    return [str(turn.text_content()) for turn in pane(page, name).locator(".turns li").all()]


def send(page: Page, message: str) -> None:
    page.get_by_label("Message").fill(message)
    run(page)
    both_done(page)


def test_each_pane_goes_on_from_its_own_answers(opened: Open, url: str) -> None:
    """With the real model: both panes get the same messages, each with its own earlier answers."""
    page = opened(url)
    page.get_by_label("chat").check()
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("measure how close answers are").uncheck()
    first, second = "Name an animal that lives in the sea.", "What does it eat?"
    send(page, first)
    expect(page.get_by_label("Message")).to_have_value("")
    answers = {name: answer(page, name) for name in "AB"}
    send(page, second)

    for name, sparsity in (("A", 0), ("B", 0.5)):
        assert said(page, name) == [f"You{first}", f"Model{answers[name]}", f"You{second}"]
        messages = [("user", first), ("assistant", answers[name]), ("user", second)]
        body = {
            "messages": [{"role": role, "content": text} for role, text in messages], "max_tokens": 12,
            "temperature": 0, "repetition_penalty": 1.1, "seed": 1, "sparsity": sparsity,
        }  # fmt: skip
        given = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        assert answer(page, name) == given["choices"][0]["message"]["content"]


def test_a_new_conversation(opened: Open) -> None:
    """A button forgets the turns; switching to completions and back does not."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        anew = page.get_by_role("button", name="New conversation")
        expect(anew).to_be_hidden()
        page.get_by_label("chat").check()
        expect(anew).to_be_disabled()
        page.get_by_label("Most tokens").fill("3")
        send(page, "one")
        page.get_by_label("completion").check()
        assert said(page, "A") == []
        expect(anew).to_be_hidden()
        page.get_by_label("chat").check()
        assert said(page, "A") == said(page, "B") == ["Youone", "Modelbcd"]
        send(page, "two")
        anew.click()
        assert said(page, "A") == said(page, "B") == []
        expect(page.get_by_label("Message")).to_be_focused()
        send(page, "three")

        assert engine.prompts == [
            *["user:one;assistant:"] * 2,
            *["user:one;assistant:bcd;user:two;assistant:"] * 2,
            *["user:three;assistant:"] * 2,
        ]


def test_a_pane_that_comes_back_goes_on_from_the_other(opened: Open) -> None:
    """So both panes always have the same messages of the user."""
    with served(engine := ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        page.get_by_label("two panes").uncheck()
        page.get_by_label("Most tokens").fill("3")
        send(page, "one")
        page.get_by_label("two panes").check()
        assert said(page, "B") == ["Youone", "Modelbcd"]
        send(page, "two")
        assert engine.prompts[1:] == ["user:one;assistant:bcd;user:two;assistant:"] * 2


def test_a_message_without_an_answer_is_not_kept(opened: Open) -> None:
    """If a run is stopped before B has answered, the message stays in its field and can be sent again."""
    with served(engine := ScriptedEngine(step_s=0.01)) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        page.get_by_label("Most tokens").fill("500")
        page.get_by_label("Message").fill("one")
        run(page)
        expect(state(page, "A")).to_contain_text("Generating")
        expect(page.get_by_label("completion")).to_be_disabled()
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text("Stopped. Your message was not kept: you can send it again.")
        expect(page.get_by_label("Message")).to_have_value("one")
        page.get_by_label("Most tokens").fill("3")
        run(page)
        both_done(page)
        assert engine.prompts[1:] == ["user:one;assistant:"] * 2


def test_an_answer_that_breaks_off(opened: Open) -> None:
    """The page shows the error as a sentence, and the message can be sent again."""
    with served(ScriptedEngine(fail_after=5)) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        page.get_by_label("Message").fill("one")
        run(page)
        expect(pane(page, "A").get_by_role("alert")).to_contain_text("The answer broke off: the request failed inside")
        expect(page.locator("#status")).to_have_text("That failed. Your message was not kept: you can send it again.")
        expect(page.get_by_label("Message")).to_have_value("one")


def test_markup_in_a_conversation_stays_text(opened: Open) -> None:
    """Messages and answers are escaped, earlier ones too. A phone fits a word of any length."""
    with served(ScriptedEngine(text="<b>x</b> ")) as url:
        page = opened(url, PHONE)
        page.get_by_label("chat").check()
        page.get_by_label("Seed").fill("0")
        page.get_by_label("Most tokens").fill("9")
        send(page, "<i>hello</i>")
        send(page, "more" * 100)
        assert fits(page)
        assert said(page, "A")[:2] == ["You<i>hello</i>", "Model<b>x</b> "]
        assert page.locator(".talk b, .talk i").count() == 0


def test_thoughts_stand_apart(opened: Open) -> None:
    """A thought is neither part of the answer nor of the conversation."""
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = "texts with <think> and </think>"
    text = "<think>hm</think>yes"
    with served(engine := ScriptedEngine(text=text), tokenizer=tokenizer) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        page.get_by_label("Seed").fill("0")
        page.get_by_label("Most tokens").fill(str(len(text)))
        send(page, "one")
        assert answer(page, "A") == "yes"
        expect(state(page, "A")).to_contain_text(f"{len(text)} tokens")
        expect(pane(page, "A").locator(".thought div")).to_have_text("hm")
        send(page, "two")
        assert engine.prompts[-1] == "user:one;assistant:yes;user:two;assistant:"


def test_a_model_without_a_chat_template(opened: Open) -> None:
    """Chat is off, with the reason; examples for chat become completions."""
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = None
    with served(ScriptedEngine(), tokenizer=tokenizer) as url:
        page = opened(url)
        expect(page.get_by_text("Chat is off: this model has no chat template.")).to_be_visible()
        expect(page.get_by_label("chat")).to_be_disabled()
        page.get_by_label("Example").select_option("Why leaves turn red")
        expect(page.get_by_label("completion")).to_be_checked()
        run(page)
        both_done(page)


class Silent(Shelf):
    """Models of which beta has no chat template."""

    def load(self, settings: Settings) -> Loaded:
        loaded = super().load(settings)
        assert isinstance(loaded.tokenizer, CharacterTokenizer)
        loaded.tokenizer.chat_template = None if settings.model == "beta" else "roles and texts"
        return loaded


def test_one_of_several_models(opened: Open, watches: list[Watch]) -> None:
    """The first request loads a model, and then its sizes are known. With one model there is no choice."""
    shelf = Silent(alpha=1, beta=1)
    with several(shelf) as url:
        page = opened(url)
        choice = page.get_by_label("Model", exact=True)
        assert choice.locator("option").all_inner_texts() == ["alpha", "beta"]
        page.get_by_label("Most tokens").fill("4")
        run(page)
        both_done(page)
        assert answer(page, "A") == "lpha"
        choice.select_option("beta")
        expect(page.locator("#model")).to_have_text(
            "beta is not loaded: the first request loads it, which takes a while."
        )
        run(page)
        both_done(page)
        assert answer(page, "A") == "etab"
        expect(page.locator("#model")).to_contain_text("beta, 1,000 parameters")
        expect(pane(page, "B").locator(".counts")).to_contain_text("MB a token")
        assert shelf.loads == ["alpha", "beta"]
        expect(page.get_by_label("chat")).to_be_disabled()
        choice.select_option("alpha")
        expect(page.get_by_label("chat")).to_be_enabled()
        # The page learns that a model has no chat template when it is loaded; before that the server refuses.
        run(page)
        both_done(page)
        choice.select_option("beta")
        page.get_by_label("chat").check()
        with refused(page, watches, 400):
            run(page)
            expect(page.get_by_text("Chat is off: this model has no chat template.")).to_be_visible()
        expect(page.get_by_label("completion")).to_be_checked()
    with served(ScriptedEngine()) as url:
        expect(opened(url).get_by_label("Model", exact=True)).to_be_hidden()


def test_a_late_answer_is_not_taken_for_the_chosen_model(opened: Open) -> None:
    """A late reply about another model's chat template does not change the chosen model's."""
    with several(Silent(alpha=1, beta=1), memory_limit=1) as url:
        httpx.post(f"{url}/v1/completions", json={"model": "beta", "prompt": "a", "max_tokens": 1}).raise_for_status()
        page = opened(url)
        held: list[Route] = []
        page.route("**/tokenizer_info?model=beta", lambda route: held.append(route))
        choice = page.get_by_label("Model", exact=True)
        with page.expect_request("**/tokenizer_info?model=beta"):
            choice.select_option("beta")
        choice.select_option("alpha")
        expect(page.locator("#model")).to_contain_text("alpha, ")
        with page.expect_response("**/tokenizer_info?model=beta") as late:
            held[0].continue_()
        assert late.value.json()["chat_template"] is None
        late.value.finished()
        # The page has handled the reply after two frames.
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(page.get_by_label("chat")).to_be_enabled()


def test_neurons_of_two_models_are_not_compared(opened: Open) -> None:
    """A prompt's neurons are compared with those of the last prompt only if the model is the same."""
    with several(Shelf(alpha=1, beta=1)) as url:
        page = opened(url)
        page.get_by_label("Most tokens").fill("4")
        choose(page, "Method", "griffin", "B")
        caption = pane(page, "B").locator("figcaption")

        def ask(model: str, prompt: str) -> str:
            page.get_by_label("Model", exact=True).select_option(model)
            page.get_by_label("Prompt", exact=True).fill(prompt)
            run(page)
            both_done(page)
            return str(caption.text_content())

        alone = "Kept for this prompt: 100 of 200 neurons in 2 layers."
        compared = f"{alone} 100 % were kept for the prompt before too; chosen blindly it would be 50 %."
        assert [
            ask("alpha", "one"),
            ask("alpha", "two"),
            ask("beta", "three"),
            ask("beta", "three"),
            ask("beta", "four"),
            ask("alpha", "four"),
        ] == [alone, compared, alone, alone, compared, alone]


def test_a_reload_forgets_a_conversation(opened: Open) -> None:
    """The page announces this."""
    with served(ScriptedEngine()) as url:
        page = opened(url)
        page.get_by_label("chat").check()
        expect(page.get_by_text(re.compile("begin a new conversation or leave or reload"))).to_be_visible()
        page.get_by_label("Most tokens").fill("3")
        send(page, "one")
        page.reload()
        expect(page.locator("#model")).to_contain_text("context of")
        page.get_by_label("chat").check()
        assert said(page, "A") == []
