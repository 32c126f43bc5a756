#include "model/step.h"

namespace ringlet {

const char* name_of(Recompute policy) {
  switch (policy) {
    case Recompute::none: return "none";
    case Recompute::selective: return "selective";
    case Recompute::full: return "full";
    case Recompute::automatic: return "auto";
  }
  return "?";
}

Step::Step(RankContext context, const StepSettings& step_settings, Pass step_pass,
           const SequenceLayout& sequence_layout, std::reference_wrapper<const Mask> step_mask,
           double rope_base, int64_t head_dim,
           std::span<const int32_t> host_tokens, std::span<const int32_t> host_labels)
    : device(context.device),
      ring(context.ring),
      trace(context.trace),
      offload(context.offload),
      host_memory(context.host_memory),
      settings(step_settings),
      pass(step_pass),
      layout(sequence_layout),
      mask(step_mask),
      schedule(layout, mask, host_memory) {
  const int64_t row_count = layout.rows(ring.rank());
  CHECK(settings.recompute != Recompute::automatic, "no recompute policy was chosen");
  CHECK(layout.ring_size() == ring.size(), "layout for ", layout.ring_size(), " ranks on a ring of ",
        ring.size());
  CHECK(int64_t(host_tokens.size()) == row_count && int64_t(host_labels.size()) == row_count,
        host_tokens.size(), " tokens for ", row_count, " rows");
  std::pmr::vector<int64_t> visible(size_t(row_count), host_memory);
  for (const Piece& piece : pieces()) {
    for (int64_t i = 0; i < piece.row_count; ++i) {
      visible[piece.first_row + i] = mask.first_visible(piece.position(i));
    }
  }
  const auto allocate = [&](Dtype dtype, int64_t columns) {
    return arena().allocate("inputs", dtype, {row_count, columns, 1, 1});
  };
  tokens = allocate(Dtype::i32, 1);
  labels = allocate(Dtype::i32, 1);
  first_visible = allocate(Dtype::i64, 1);
  rotary = allocate(Dtype::f32, head_dim);
  losses = allocate(Dtype::f32, 1);
  upload<int32_t>(device, host_tokens, tokens);
  upload<int32_t>(device, host_labels, labels);
  upload<int64_t>(device, visible, first_visible);
  device.rotary_table(pieces(), rope_base, rotary);
}

}  // namespace ringlet
