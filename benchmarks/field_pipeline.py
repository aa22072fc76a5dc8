"""The loader that published code of the field has, in Pillow: every image is resized whole, then cropped, and leaves as floats.

Written from what such code does: resize by a random factor, pad, crop, flip; a copy with colour jitter, grey and blur for
unlabelled images; to a tensor, and normalised.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from cwbass.config import AugmentConfig
from cwbass.data.base import Sample

IGNORE = 255


def field_item(root: Path, sample: Sample, *, augment: AugmentConfig) -> tuple[torch.Tensor, ...]:
    """Image and mask of a labelled sample; weak view, strong view and ignored pixels of an unlabelled one."""
    image = Image.open(root / sample.image).convert("RGB")
    if sample.mask is not None:
        mask = Image.open(root / sample.mask)
        image, mask = geometry(image, mask, augment)
        return normalize(image), torch.from_numpy(np.array(mask)).long()
    image, mask = geometry(image, Image.new("L", image.size), augment)
    return normalize(image), normalize(strong(image, augment)), torch.from_numpy(np.array(mask)).long()


def geometry(image: Image.Image, mask: Image.Image, augment: AugmentConfig) -> tuple[Image.Image, Image.Image]:
    """Resize, pad, crop and flip."""
    scale, size = random.uniform(*augment.scale), augment.crop_size
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    mask = mask.resize((width, height), Image.Resampling.NEAREST)
    border = (0, 0, max(0, size - width), max(0, size - height))
    image, mask = ImageOps.expand(image, border, fill=0), ImageOps.expand(mask, border, fill=IGNORE)
    left, top = random.randint(0, image.width - size), random.randint(0, image.height - size)
    box = (left, top, left + size, top + size)
    image, mask = image.crop(box), mask.crop(box)
    if random.random() < augment.hflip:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return image, mask


def strong(image: Image.Image, augment: AugmentConfig) -> Image.Image:
    """Colour jitter, grey and blur, each with its probability."""
    if random.random() < augment.jitter:
        image = transforms.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)(image)
    image = transforms.RandomGrayscale(augment.grayscale)(image)
    if random.random() < augment.blur:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*augment.blur_sigma)))
    return image


def normalize(image: Image.Image) -> torch.Tensor:
    """[3, S, S] float32."""
    steps = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    return transforms.Compose(steps)(image)
