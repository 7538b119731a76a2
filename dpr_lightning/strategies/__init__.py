"""DeepSpeed as this package needs it: ZeRO without CUDA, rewards kept in float32."""
