// SPDX-License-Identifier: Apache-2.0
// WalkColumn: ranges where nothing is null, which cost offsets only; else an index of every
// element.
#include "arcflow/columnar/arrow_walk.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "arcflow/columnar/arrow_format.h"

namespace arcflow::columnar {
namespace {

// An index of more elements than this comes of a shape that no batch of this size can have.
constexpr std::size_t kMaxElements = std::size_t{1} << 32;

/// Validity of consecutive values; no bitmap: all are there.
struct Validity {
  const std::byte* bitmap = nullptr;
  std::size_t begin = 0;

  bool there(std::size_t i) const { return bitmap == nullptr || BitAt(bitmap, begin + i); }
};

/// One level of lists: where each list of `range` begins and ends in its values.
struct Level {
  Range range;
  Validity validity;                   // of the lists, from position 0 of the buffers
  const std::byte* offsets = nullptr;  // from position 0 of the buffers
  bool wide = false;
  std::size_t fixed_size = 0;  // without offsets
  std::size_t child_offset = 0;

  std::size_t First(std::size_t list) const {
    return child_offset + (offsets == nullptr ? list * fixed_size : OffsetAt(wide, offsets, list));
  }
};

class Walker {
 public:
  Walker(const Column& column, std::size_t rows)
      : column_(column),
        rows_(rows),
        nulls_allowed_(column.nulls_allowed() || column.source == Source::kMask) {}

  Result<Walk> Run(const ArrowSchema& type, const ArrowArray& array, std::size_t begin) {
    type_ = &type;
    array_ = &array;
    ARC_ASSIGN(range_, RangeOf(array, begin, rows_));
    for (std::size_t i = 1; i < column_.path.size(); ++i) {
      if (Status s = EnterField(column_.path[i]); !s.ok()) {
        return s.WithContext("field '" + column_.path[i] + "'");
      }
    }
    field_ = type_;
    levels_wanted_ = column_.list_levels();
    for (std::size_t i = 0; i < levels_wanted_.size(); ++i) {
      const Status s = EnterList(levels_wanted_[i]);
      if (!s.ok()) return i == 0 ? s : s.WithContext("list values");
    }
    ARC_TRY(CheckKnown());
    if (Status s = CountNullsHere(); !s.ok()) {
      return levels_.empty() ? s : s.WithContext("list values");
    }
    Walk walk;
    walk.field = field_;
    walk.type = type_;
    walk.array = array_;
    walk.range = range_;
    walk.contiguous = nulls_ == 0;
    if (walk.contiguous) {
      walk.edges = ContiguousEdges();
    } else {
      ARC_TRY(Index(&walk));
    }
    return walk;
  }

 private:
  Status CheckKnown() const {
    if (type_->format == nullptr) return InvalidArgument("has no Arrow type");
    if (type_->dictionary != nullptr || array_->dictionary != nullptr) {
      return InvalidArgument("is dictionary-encoded (" + DescribeType(*type_) +
                             "); decode it to its value type before feeding");
    }
    return Status::Ok();
  }

  /// Counts the nulls of the values reached so far, which are an error if they may not be.
  Status CountNullsHere() {
    if (!nulls_allowed_) return CheckNoNulls(*array_, range_);
    ARC_ASSIGN(const std::size_t nulls, NullsOf(*array_, range_));
    nulls_ += nulls;
    return Status::Ok();
  }

  /// From structs to one of their fields.
  Status EnterField(const std::string& name) {
    ARC_TRY(CheckKnown());
    if (std::string_view(type_->format) != "+s") {
      return InvalidArgument("expected a struct around it, found " + DescribeType(*type_));
    }
    ARC_TRY(CountNullsHere());
    parents_.push_back({Buffer(*array_, 0), range_.begin});
    if (&name == &column_.path.back()) ARC_TRY(CheckExpected());
    ARC_ASSIGN(const std::int64_t i, FieldIndex(*type_, *array_, name));
    const std::size_t begin = range_.begin;
    type_ = type_->children[i];
    array_ = array_->children[i];
    ARC_ASSIGN(range_, RangeOf(*array_, begin, rows_));
    return Status::Ok();
  }

  Status CheckExpected() const {
    for (const auto& [name, value] : column_.expect) {
      ARC_ASSIGN(const std::int64_t i, FieldIndex(*type_, *array_, name));
      if (Status s = CheckEqual(*type_->children[i], *array_->children[i], value); !s.ok()) {
        return s.WithContext("'" + name + "'");
      }
    }
    return Status::Ok();
  }

  Status CheckEqual(const ArrowSchema& type, const ArrowArray& array, std::int64_t value) const {
    const std::string_view format = type.format == nullptr ? "" : type.format;
    if (format != "i") return InvalidArgument("expected int32, found " + DescribeType(type));
    ARC_ASSIGN(const Range range, RangeOf(array, range_.begin, rows_));
    const std::byte* data = Buffer(array, 1);
    if (data == nullptr && rows_ > 0) return NoBuffer("data buffer");
    const Validity there{Buffer(array, 0), range.begin};
    for (std::size_t i = 0; i < rows_; ++i) {
      if (!RowThere(i) || !there.there(i)) continue;
      const auto found = LoadAt<std::int32_t>(data, range.begin + i);
      if (found == value) continue;
      return InvalidArgument("row " + std::to_string(i) + ": is " + std::to_string(found) +
                             ", must be " + std::to_string(value) + " in every row");
    }
    return Status::Ok();
  }

  bool RowThere(std::size_t row) const {
    return std::all_of(parents_.begin(), parents_.end(),
                       [row](const Validity& v) { return v.there(row); });
  }

  /// From lists to their values.
  Status EnterList(std::int64_t wanted) {
    ARC_TRY(CheckKnown());
    const std::string_view format = type_->format;
    const bool wide = format == "+L";
    const auto fixed = FixedSizeOf(format, "+w:");
    if (!wide && format != "+l" && !fixed) return WrongType(column_, *field_);
    if (type_->n_children != 1 || type_->children == nullptr || type_->children[0] == nullptr ||
        array_->n_children != 1 || array_->children == nullptr || array_->children[0] == nullptr) {
      return NoBuffer("list values");
    }
    const std::size_t nulls_before = nulls_;
    ARC_TRY(CountNullsHere());
    // Null lists may be of any length; each of the others is looked at when the index is made.
    const bool exact = wanted != kVariable && nulls_ == nulls_before && nulls_ == 0;
    Level level;
    level.range = range_;
    level.validity = {Buffer(*array_, 0), 0};
    level.wide = wide;
    const ArrowArray& child = *array_->children[0];
    Range values;
    if (fixed) {
      ARC_ASSIGN(values, FixedValues(static_cast<std::size_t>(*fixed), wanted));
      level.fixed_size = static_cast<std::size_t>(*fixed);
    } else if (range_.rows > 0) {
      level.offsets = Buffer(*array_, 1);
      if (level.offsets == nullptr) return NoBuffer("offsets buffer");
      const auto limit = static_cast<std::uint64_t>(std::max<std::int64_t>(child.length, 0));
      const auto length = static_cast<std::size_t>(wanted);
      const std::byte* first = level.offsets + range_.begin * (wide ? 8 : 4);
      ARC_TRY(CheckOffsets(wide, first, range_.rows, limit, exact ? &length : nullptr, "values"));
      values.begin = OffsetAt(wide, first, 0);
      values.rows = OffsetAt(wide, first, range_.rows) - values.begin;
    }
    type_ = type_->children[0];
    array_ = &child;
    const Result<Range> inner = RangeOf(child, values.begin, values.rows);
    if (!inner.ok()) return inner.status().WithContext("list values");
    level.child_offset = inner->begin - values.begin;
    range_ = *inner;
    levels_.push_back(level);
    return Status::Ok();
  }

  /// Values of fixed_size_lists.
  Result<Range> FixedValues(std::size_t size, std::int64_t wanted) const {
    if (wanted != kVariable && size != static_cast<std::size_t>(wanted)) {
      return InvalidArgument("row 0: " + std::to_string(size) + " values, the schema says " +
                             std::to_string(wanted));
    }
    Range values;
    if (__builtin_mul_overflow(range_.begin, size, &values.begin) ||
        __builtin_mul_overflow(range_.rows, size, &values.rows)) {
      return InvalidArgument("impossible length");
    }
    return values;
  }

  bool Variable() const {
    return std::find(levels_wanted_.begin(), levels_wanted_.end(), kVariable) !=
           levels_wanted_.end();
  }

  /// Where each row ends in the values of the last level; no list is null.
  std::vector<std::size_t> ContiguousEdges() const {
    std::vector<std::size_t> edges;
    if (!Variable()) return edges;
    edges.resize(rows_ + 1);
    for (std::size_t row = 0; row <= rows_; ++row) edges[row] = row;
    for (const Level& level : levels_) {
      if (level.range.rows == 0) {
        std::fill(edges.begin(), edges.end(), 0);
        break;
      }
      const std::size_t first = level.First(level.range.begin);
      for (std::size_t& edge : edges) edge = level.First(level.range.begin + edge) - first;
    }
    return edges;
  }

  Status Index(Walk* walk) const {
    std::vector<std::int64_t>& index = walk->index;
    index.resize(rows_);
    const Range top = levels_.empty() ? range_ : levels_.front().range;
    for (std::size_t row = 0; row < rows_; ++row) {
      index[row] = RowThere(row) ? static_cast<std::int64_t>(top.begin + row) : Walk::kNull;
    }
    if (Variable()) {
      walk->edges.resize(rows_ + 1);
      for (std::size_t row = 0; row <= rows_; ++row) walk->edges[row] = row;
    }
    for (std::size_t i = 0; i < levels_.size(); ++i) {
      ARC_TRY(Descend(levels_[i], levels_wanted_[i], walk));
    }
    const Validity leaf{Buffer(*array_, 0), 0};
    for (std::int64_t& at : index) {
      if (at >= 0 && !leaf.there(static_cast<std::size_t>(at))) at = Walk::kNull;
    }
    return Status::Ok();
  }

  /// Replaces each list in the index by its values.
  Status Descend(const Level& level, std::int64_t wanted, Walk* walk) const {
    std::vector<std::int64_t> values;
    std::vector<std::size_t> starts(walk->edges.empty() ? 0 : walk->index.size() + 1);
    for (std::size_t i = 0; i < walk->index.size(); ++i) {
      const std::int64_t list = walk->index[i];
      const bool there = list >= 0 && level.validity.there(static_cast<std::size_t>(list));
      std::size_t count = wanted == kVariable ? 0 : static_cast<std::size_t>(wanted);
      std::size_t first = 0;
      if (there) {
        first = level.First(static_cast<std::size_t>(list));
        const std::size_t length = level.First(static_cast<std::size_t>(list) + 1) - first;
        if (wanted != kVariable && length != count) {
          return InvalidArgument("row " + std::to_string(walk->RowOf(i, rows_)) + ": " +
                                 std::to_string(length) + " values, the schema says " +
                                 std::to_string(wanted) +
                                 "; every row must have the same length: pad or cut it before "
                                 "feeding, or say None in shapes=");
        }
        count = length;
      }
      if (values.size() + count > kMaxElements) {
        return InvalidArgument("more than " + std::to_string(kMaxElements) +
                               " elements in one batch: lower "
                               "spark.sql.execution.arrow.maxRecordsPerBatch");
      }
      if (!starts.empty()) starts[i] = values.size();
      for (std::size_t j = 0; j < count; ++j) {
        values.push_back(there ? static_cast<std::int64_t>(first + j) : Walk::kNull);
      }
    }
    if (!starts.empty()) {
      starts.back() = values.size();
      for (std::size_t& edge : walk->edges) edge = starts[edge];
    }
    walk->index = std::move(values);
    return Status::Ok();
  }

  const Column& column_;
  const std::size_t rows_;
  const bool nulls_allowed_;
  const ArrowSchema* field_ = nullptr;
  const ArrowSchema* type_ = nullptr;
  const ArrowArray* array_ = nullptr;
  Range range_;
  std::size_t nulls_ = 0;
  std::vector<Validity> parents_;
  std::vector<std::int64_t> levels_wanted_;
  std::vector<Level> levels_;
};

}  // namespace

std::size_t Walk::RowOf(std::size_t i, std::size_t rows) const {
  if (!edges.empty()) {
    const auto after = std::upper_bound(edges.begin(), edges.end(), i);
    return static_cast<std::size_t>(after - edges.begin()) - 1;
  }
  const std::size_t n = elements();
  return n == 0 || rows == 0 ? 0 : i / std::max<std::size_t>(n / rows, 1);
}

Result<std::int64_t> FieldIndex(const ArrowSchema& type, const ArrowArray& array,
                                const std::string& name) {
  if (type.n_children < 0 || type.n_children != array.n_children ||
      (type.n_children > 0 && (type.children == nullptr || array.children == nullptr))) {
    return InvalidArgument("malformed struct: type and data have different fields");
  }
  std::int64_t found = -1;
  std::string names;
  for (std::int64_t i = 0; i < type.n_children; ++i) {
    if (type.children[i] == nullptr || array.children[i] == nullptr) {
      return InvalidArgument("malformed struct: field " + std::to_string(i) + " is null");
    }
    const char* each = type.children[i]->name == nullptr ? "" : type.children[i]->name;
    names += (names.empty() ? "'" : ", '") + std::string(each) + "'";
    if (name != each) continue;
    if (found >= 0) return InvalidArgument("there twice in the struct");
    found = i;
  }
  if (found < 0) {
    return InvalidArgument("missing; the struct has " + (names.empty() ? "no fields" : names));
  }
  return found;
}

Result<Walk> WalkColumn(const Column& column, const ArrowSchema& type, const ArrowArray& array,
                        std::size_t begin, std::size_t rows) {
  return Walker(column, rows).Run(type, array, begin);
}

}  // namespace arcflow::columnar
