from pathlib import Path

import torch

import aot
from aot.artifact.certificate import compare
from aot.model.fusion import fuse_qkv, split_qkv
from aot.model.memory_format import to_channels_last
from tests.pixart import denoise, make_pipe


def test_fused_projections_give_the_same_answer_in_one_copy_of_the_weights() -> None:
    pipe = make_pipe()
    expected, size = denoise(pipe), sum(weight.numel() for weight in pipe.transformer.parameters())
    assert fuse_qkv(pipe.transformer)
    assert not hasattr(pipe.transformer.transformer_blocks[0].attn1, "to_q")
    assert sum(weight.numel() for weight in pipe.transformer.parameters()) == size
    assert compare(denoise(pipe), expected).relative_l2 <= 1e-6
    assert not fuse_qkv(pipe.transformer)


def test_a_fused_model_saves_a_checkpoint_that_loads_unfused(tmp_path: Path) -> None:
    pipe = make_pipe()
    expected = denoise(pipe)
    fuse_qkv(pipe.transformer)
    pipe.transformer.save_pretrained(tmp_path)
    pipe.transformer, names = type(pipe.transformer).from_pretrained(tmp_path, output_loading_info=True)
    assert not names["missing_keys"]
    assert not names["unexpected_keys"]
    assert torch.equal(denoise(pipe), expected)


def test_splitting_undoes_fusing() -> None:
    pipe = make_pipe()
    expected, names = denoise(pipe), set(pipe.transformer.state_dict())
    fuse_qkv(pipe.transformer)
    split_qkv(pipe.transformer)
    assert (
        set(pipe.transformer.state_dict())
        == names
        == {name for name, _ in pipe.transformer.named_parameters()}
        | {name for name, _ in pipe.transformer.named_buffers() if name in names}
    )
    assert torch.equal(denoise(pipe), expected)
    assert fuse_qkv(pipe.transformer)


def test_a_module_without_projections_is_left_alone() -> None:
    assert not fuse_qkv(make_pipe().vae.decoder)


def test_restore_undoes_fusion_and_memory_format() -> None:
    pipe = make_pipe()
    expected = denoise(pipe)
    aot.compile_pipe(pipe, options={"memory_format": "channels_last"}, fuse_qkv_projections=True, on_miss="eager")
    assert hasattr(pipe.transformer.transformer_blocks[0].attn1, "to_qkv")
    assert pipe.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    aot.restore(pipe)
    assert pipe.vae.decoder.conv_in.weight.is_contiguous()
    assert torch.equal(denoise(pipe), expected)


def test_channels_last_leaves_5d_weights_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3), torch.nn.Conv2d(2, 3, 3))
    undo = to_channels_last(module)
    assert module[0].weight.is_contiguous()
    assert module[1].weight.is_contiguous(memory_format=torch.channels_last)
    undo(module)
    assert module[1].weight.is_contiguous()
