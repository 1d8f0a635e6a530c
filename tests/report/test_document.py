import base64
import hashlib
import json
import re

from mmattn.evaluate.tables import Interval, Table
from mmattn.report.document import document, table


def test_columns_of_numbers_are_set_to_the_right_and_text_to_the_left():
    rows = [["a", 1, Interval(0.5, 0.4, 0.6), "x"], ["b", None, 0.25, "y"]]
    cells = re.findall(
        r"<t[hd]([^>]*)>([^<]*)</t[hd]>", table(Table("T", ["arm", "n", "UAR", "why"], rows))
    )
    right = {text for attributes, text in cells if "number" in attributes}
    assert right == {"n", "UAR", "1", "–", "0.500 [0.400, 0.600]", "0.250"}


def test_text_in_a_table_is_escaped():
    hostile = "<img src=x onerror=alert(1)>"
    made = table(Table(hostile, [hostile, "n"], [[hostile, 1]], hostile))
    assert "<img" not in made and made.count("&lt;img") == 5  # the title twice


def test_the_policy_allows_the_scripts_of_the_page_and_no_other_source():
    page = document("t", "", {}, "", {"text": "</script><!--"})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts]
    sources = " ".join(f"'sha256-{digest.decode()}'" for digest in hashes)
    assert f"default-src 'none'; script-src {sources};" in policy
    assert "http" not in policy and "unsafe-eval" not in policy


def test_the_payload_cannot_end_its_script():
    value = {"text": "</script><script>alert(1)</script><!-- \u2028"}
    page = document("t", "", {}, "", value)
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data) == value
