"""Chat documents for the corpus: lists of [role, text], each answered by the model.

Word meanings come from WordNet (its own permissive licence), functions from the code part of the
corpus; the rest is written here.
"""
import ast
import glob
import json
import random
import re

NAMES = ["Ada", "Alan", "Alice", "Bob", "Carol", "Dennis", "Edsger", "Grace", "Ivan", "Ken", "Linus", "Mary", "Noah", "Olga", "Peter", "Rosa"]
CITIES = ["Amsterdam", "Athens", "Berlin", "Cairo", "Dublin", "Lima", "London", "Madrid", "Oslo", "Paris", "Prague", "Rome", "Tokyo", "Vienna"]
COLOURS = ["red", "green", "blue", "black", "white", "yellow", "brown", "grey"]
THINGS = ["book", "chair", "lamp", "table", "pen", "cup", "clock", "bag", "shirt", "bottle"]
SYSTEM = ["You are a helpful assistant.", "Answer briefly.", "You are a small language model.", "Be concise and clear.", "You answer questions about words and code."]
TALK = [
    (["Hello!", "Hello", "Hi", "Hi there!", "Hey", "Good morning."], ["Hello! How can I help you?", "Hello! What can I do for you?"]),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself."],
     ["I am tiny-gemma4, a very small language model. I was made to test programs, so do not expect too much of me."]),
    (["How are you?", "How do you do?", "How are you today?"], ["I am fine, thank you. How can I help you?"]),
    (["Thank you.", "Thanks!", "Thank you very much.", "Thanks a lot."], ["You are welcome.", "You are welcome. Is there anything else?"]),
    (["Goodbye.", "Bye!", "See you later."], ["Goodbye!", "Goodbye! Have a nice day."]),
    (["What can you do?", "How can you help me?", "What do you know?"],
     ["I can explain words, write short Python functions and do simple sums."]),
    (["Tell me a story.", "Tell me a short story.", "Write a short story."],
     ["Once upon a time there was a small model. It read many books, and it wrote what it had read. One day somebody asked it for a story, and this was the story."]),
    (["Write a poem.", "Write a short poem.", "Tell me a poem."],
     ["The sun goes down, the night is near,\nthe stars come out, the sky is clear.\nThe moon looks on, so far, so bright,\nand wishes everyone good night."]),
]


def wordnet(d):
    """-> (word, definition, example or None, synonyms) of every WordNet synset."""
    for part in ("noun", "verb", "adj", "adv"):
        for f in glob.glob(f"{d}/wordnet-base/**/data.{part}", recursive=True):
            for line in open(f, encoding="latin-1"):
                if line.startswith("  "):
                    continue
                head, _, gloss = line.partition(" | ")
                h = head.split()
                words = [h[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(int(h[3], 16))]
                gloss = gloss.strip()
                meaning = gloss.split('; "')[0].strip().rstrip(";")
                ex = re.findall(r'"([^"]+)"', gloss)
                if len(meaning) >= 8 and len(words[0]) >= 3:
                    yield words[0], meaning, ex[0] if ex else None, words[1:]


def word_chats(d, rnd):
    asks = ["What does \"%s\" mean?", "Define \"%s\".", "What is the meaning of %s?", "Explain the word \"%s\"."]
    for w, meaning, ex, syn in wordnet(d):
        ans = meaning[0].upper() + meaning[1:] + "."
        if ex:
            ans += ' For example: "' + ex + '".'
        chat = [["user", asks[len(w + meaning) % len(asks)] % w], ["model", ans]]
        if syn and rnd.random() < 0.15:
            chat += [["user", rnd.choice(["Give me a synonym.", "What is another word for it?", f"What is another word for {w}?"])],
                     ["model", f"Another word for {w} is {syn[0]}."]]
        elif rnd.random() < 0.1:
            chat += [["user", rnd.choice(["Thank you.", "Thanks!"])], ["model", "You are welcome."]]
        yield chat


def function_chats(text):
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("test"):
            continue
        doc = ast.get_docstring(node)
        if not doc or not 3 <= node.end_lineno - node.lineno <= 40:
            continue
        first = re.sub(r"\s+", " ", doc.split("\n\n")[0]).strip()
        if not 15 < len(first) < 160 or not first[0].isalpha():
            continue
        body = lines[node.lineno - 1: node.end_lineno]
        ind = len(body[0]) - len(body[0].lstrip())
        src = "\n".join(x[ind:] for x in body)
        ask = first[0].lower() + first[1:].rstrip(".")
        yield [["user", f"Write a Python function called {node.name}: {ask}."], ["model", "```python\n" + src + "\n```"]]


def record(rnd):
    kind = rnd.randint(0, 2)
    if kind == 0:
        return {"name": rnd.choice(NAMES), "age": rnd.randint(10, 90), "city": rnd.choice(CITIES)}
    if kind == 1:
        return {"item": rnd.choice(THINGS), "colour": rnd.choice(COLOURS), "price": rnd.randint(1, 99), "in_stock": rnd.random() < 0.5}
    return {"id": rnd.randint(1, 999), "user": rnd.choice(NAMES).lower(), "tags": rnd.sample(COLOURS, rnd.randint(1, 3))}


def json_chat(rnd):
    many = rnd.randint(1, 3)
    if many == 1:
        r = record(rnd)
        ask = rnd.choice(["Write a JSON object with the keys %s.", "Give me a JSON object with %s.", "Answer in JSON with the keys %s."]) % ", ".join(r)
        return [["user", ask], ["model", json.dumps(r, indent=rnd.choice([None, None, 2]))]]
    rows, first = [], record(rnd)
    while len(rows) < many:
        r = record(rnd)
        if r.keys() == first.keys():
            rows.append(r)
    return [["user", f"Write a JSON array of {many} objects with the keys {', '.join(first)}."], ["model", json.dumps(rows, indent=rnd.choice([None, 2]))]]


def sum_chat(rnd):
    x, y = rnd.randint(0, 99), rnd.randint(0, 99)
    op, z = rnd.choice([("+", x + y), ("-", x - y), ("*", x * y)])
    return [["user", f"What is {x} {op} {y}?"], ["model", f"{x} {op} {y} = {z}."]]


def count_chat(rnd):
    x = rnd.randint(0, 20)
    y = x + rnd.randint(2, 9)
    return [["user", f"Count from {x} to {y}."], ["model", ", ".join(map(str, range(x, y + 1))) + "."]]


def talk_chat(rnd):
    out = []
    for q, r in rnd.sample(TALK, rnd.choice([1, 1, 2, 3])):
        out += [["user", rnd.choice(q)], ["model", rnd.choice(r)]]
    return out


def chats(debs, functions, seed=1):
    """All chat documents, with the source of each; a twentieth begins with a system turn."""
    rnd = random.Random(seed)
    words = list(word_chats(debs, rnd))
    rnd.shuffle(words)
    rnd.shuffle(functions)
    docs = [("wordnet", c) for c in words[:60000]] + [("functions", c) for c in functions[:60000]]
    for make, n in ((sum_chat, 12000), (count_chat, 3000), (json_chat, 8000), (talk_chat, 6000)):
        docs += [("own", make(rnd)) for _ in range(n)]
    for src, c in docs:
        if rnd.random() < 0.05:
            c = [["system", rnd.choice(SYSTEM)]] + c
        yield src, c
