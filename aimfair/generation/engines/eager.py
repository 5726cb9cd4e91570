"""The model's own modules in PyTorch: what every other engine has to agree with."""

from torch import Tensor, nn

from aimfair.generation.engines.interface import Source


class Denoiser(nn.Module):
    """The UNet as :meth:`Engine.denoise` calls it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        predicted: Tensor = self.unet(sample, timestep, encoder_hidden_states=embeddings, return_dict=False)[0]
        return predicted


class Decoder(nn.Module):
    """The autoencoder's second half as :meth:`Engine.decode` calls it."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]  # type: ignore[operator]  # of diffusers
        return images


class Eager:
    """An :class:`Engine` that keeps nothing and needs nothing built."""

    def __init__(self, source: Source):
        self._denoiser, self._decoder = Denoiser(source.unet), Decoder(source.vae)

    def denoise(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        predicted: Tensor = self._denoiser(sample, timestep, embeddings)
        return predicted

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self._decoder(latents)
        return images
