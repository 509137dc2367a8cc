// The scalar bodies of the ops on selected channels, which every table has unless a CPU has better.
#pragma once

#include "kernels/ops.h"

namespace ryz::scalar {

void select_gates(const SelectGatesArgs& a) noexcept;
void select_nonzero(const SelectNonzeroArgs& a) noexcept;
void selected_rows(const SelectedRowsArgs& a) noexcept;
void selected_columns(const SelectedColumnsArgs& a) noexcept;

}  // namespace ryz::scalar
