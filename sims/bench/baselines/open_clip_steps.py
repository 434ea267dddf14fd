"""open_clip's models, loss and training step, as its own training loop uses them. Needs torch and open_clip_torch."""

import contextlib
from collections.abc import Callable, Iterator

import torch

register_fake = torch.library.register_fake
# If torchvision's operators are missing (a CPU build of torch beside another torchvision), so are their stand-ins: they
# are not registered.
torch.library.register_fake = lambda op, *a, **k: (
    (lambda f: f) if str(op).startswith("torchvision::") else register_fake(op, *a, **k)
)
import open_clip  # noqa: E402  (it registers as it is imported)
from open_clip.loss import ClipLoss  # noqa: E402  (as above)


def device() -> str:
    """Where torch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def precision(bf16: bool) -> Iterator[None]:
    """Automatic mixed precision as open_clip's `amp_bf16`, or none."""
    with torch.autocast(device(), torch.bfloat16) if bf16 else contextlib.nullcontext():
        yield


def model(name: str) -> torch.nn.Module:
    """A model with its random weights."""
    torch.manual_seed(0)
    return open_clip.create_model(name).to(device())


def state(net: torch.nn.Module) -> dict:
    """A model's state dict in NumPy."""
    return {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}


def image_tower(net: torch.nn.Module, image, bf16: bool) -> Callable[[], torch.Tensor]:
    """A function that embeds the images (n, 3, h, w) in evaluation mode."""
    x = torch.from_numpy(image).to(device())

    def call() -> torch.Tensor:
        net.eval()
        with torch.no_grad(), precision(bf16):
            return _done(net.encode_image(x))

    return call


def training_step(net: torch.nn.Module, image, tokens, bf16: bool) -> Callable[[], float]:
    """A function that makes one AdamW step on the batch and returns its loss."""
    x, t = torch.from_numpy(image).to(device()), torch.from_numpy(tokens).to(device())
    decayed = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}]
    optimizer, loss_of = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.999), eps=1e-8), ClipLoss()

    def call() -> float:
        net.train()
        optimizer.zero_grad()
        with precision(bf16):
            features = net(x, t)
            loss = loss_of(*features[:3])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            net.logit_scale.clamp_(0, 4.6052)
        return float(loss.detach())

    return call


def loss_gradient(image, text) -> Callable[[], torch.Tensor]:
    """A function that gives the loss's gradient in both embeddings (n, r), which are normalised first."""
    a, b = (torch.from_numpy(x).to(device()).requires_grad_() for x in (image, text))
    loss_of = ClipLoss()

    def call() -> torch.Tensor:
        a.grad = b.grad = None
        unit = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
        loss_of(*unit, torch.tensor(1 / 0.07, device=a.device)).backward()
        return _done(a.grad)

    return call


def _done(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        torch.cuda.synchronize()
    return x
