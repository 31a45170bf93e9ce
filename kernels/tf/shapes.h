// Shape inference that the operations over index tables share.
#ifndef ESPACE_TF_KERNELS_TF_SHAPES_H_
#define ESPACE_TF_KERNELS_TF_SHAPES_H_

#include "tensorflow/core/framework/shape_inference.h"

namespace espace {

// What is shown of a table: the length of spread where it is used. Input spread follows table.
inline absl::Status ShownRows(tensorflow::shape_inference::InferenceContext* c, int table_index,
                              tensorflow::shape_inference::DimensionHandle* shown) {
  tensorflow::shape_inference::ShapeHandle table, spread;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(table_index), 2, &table));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(table_index + 1), 1, &spread));
  bool use_spread;
  TF_RETURN_IF_ERROR(c->GetAttr("use_spread", &use_spread));
  *shown = use_spread ? c->Dim(spread, 0) : c->Dim(table, 0);
  return absl::OkStatus();
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_TF_SHAPES_H_
