"""Pictures of a dataset: in the rows with their true type, or once each as files beside them."""

from __future__ import annotations

import base64
import hashlib
import io

import pytest
from PIL import Image

from crafter_pipeline.dataset.pictures import PNG, Pictures, inline_part
from crafter_pipeline.errors import DataError


def make_picture(kind="PNG", colour=(255, 0, 0)):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, kind)
    return out.getvalue()


def data_url(picture, mime="image/png"):
    return f"data:{mime};base64,{base64.b64encode(picture).decode()}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("told", ["image/jpeg", "image/png", "None"])
def test_a_data_url_tells_the_true_type(kind, told):
    picture = make_picture(kind)
    url = inline_part(data_url(picture, told))["image_url"]["url"]
    assert url == data_url(picture, f"image/{kind.lower()}")


@pytest.mark.parametrize("url", ["https://example.com/a.png", "data:text/plain,hello", "data:image/bmp;base64,Qk0="])
def test_other_urls_are_left_as_they_are(url):
    assert inline_part(url)["image_url"]["url"] == url


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_written_once_as_png_under_the_hash_of_its_bytes(tmp_path, kind):
    picture = make_picture(kind)
    pictures = Pictures(tmp_path / "work", "d.images")
    assert not (tmp_path / "work").exists()
    parts = [pictures.part(data_url(picture, told)) for told in ("image/jpeg", "image/png")]
    sha = hashlib.sha256(picture).hexdigest()
    assert parts == [{"type": "image", "path": f"d.images/{sha}.png"}] * 2
    (file,) = (tmp_path / "work").iterdir()
    assert file.name == f"{sha}.png" and file.read_bytes().startswith(PNG)
    assert Image.open(file).size == (8, 8)
    assert kind != "PNG" or file.read_bytes() == picture


def test_a_picture_on_the_net_is_not_fetched(tmp_path):
    url = "https://example.com/a.png"
    assert Pictures(tmp_path / "work", "x").part(url) == {"type": "image_url", "image_url": {"url": url}}
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,aGVsbG8=", "data:image/png,hello", "data:image/png;base64,é", data_url(PNG + b"cut")]
)
def test_what_is_no_picture_is_named(tmp_path, url):
    with pytest.raises(DataError, match="a picture in it"):
        Pictures(tmp_path / "work", "x").part(url)
    assert not (tmp_path / "work").exists()
