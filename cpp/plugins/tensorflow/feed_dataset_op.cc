// SPDX-License-Identifier: Apache-2.0
// Arcflow>FeedDataset: a tf.data source whose elements are batches of a node's feed.
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/feed/reader.h"
#include "batch_tensors.h"
#include "gather_ahead.h"
#include "shuffle_epochs.h"
#include "status.h"
#include "tensorflow_headers.h"

namespace arcflow::tf {
namespace {

using tensorflow::DataType;
using tensorflow::DataTypeString;
using tensorflow::DataTypeVector;
using tensorflow::mutex;
using tensorflow::mutex_lock;
using tensorflow::Node;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::tstring;
namespace data = tensorflow::data;

/// Opening waits for one answer of the agent, which is this node's own parent.
constexpr std::chrono::seconds kOpenTimeout{60};
constexpr char kStep[] = "step";
constexpr char kEpoch[] = "epoch";
constexpr char kSeed[] = "seed";
constexpr std::int64_t kNoEpoch = -1;  // the pass has not begun
constexpr char kBrokerFd[] = "ARCFLOW_NODE_FD";
constexpr char kCounterFd[] = "ARCFLOW_COUNTER_FD";

/// The descriptor number in an environment variable; -1 when it is unset.
Result<int> DescriptorFrom(const char* variable) {
  const char* text = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe): nobody sets it later
  if (text == nullptr || *text == '\0') return -1;
  const std::string_view value(text);
  int fd = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), fd);
  if (error != std::errc() || end != value.data() + value.size() || fd < 0) {
    return InvalidArgument(std::string(variable) + " is not the number of a descriptor: " + text);
  }
  return fd;
}

/// What a component of an element is made of.
constexpr char kColumn[] = "column";    // a column as it is
constexpr char kSplits[] = "splits";    // of a ragged column: items before each row
constexpr char kValues[] = "values";    // of a ragged column: its items
constexpr char kStrings[] = "strings";  // arrays of strings: a column of lengths and one of bytes

/// What makes two datasets the same. The three lists have one entry a component, but for the
/// weight.
struct FeedParams {
  std::string feed;
  std::vector<std::string> columns;
  std::vector<std::string> bytes;  // of kStrings: the second column; else empty
  std::vector<std::string> kinds;
  std::int64_t batch_size = 0;
  std::string remainder;
  bool sample_weight = false;
  bool shuffle = false;
  std::int64_t seed = 0;
  std::string shuffle_id;  // names the dataset for ShuffleEpochs
};

absl::Status RemainderFromName(const std::string& name, feed::Remainder* out) {
  constexpr std::pair<std::string_view, feed::Remainder> kNames[] = {
      {"pad", feed::Remainder::kPad},
      {"drop", feed::Remainder::kDrop},
      {"refuse", feed::Remainder::kRefuse},
      {"partial", feed::Remainder::kPartial}};
  for (const auto& [text, value] : kNames) {
    if (text == name) {
      *out = value;
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError("remainder is '" + name + "'");
}

/// The counter page that the agent shares with this node; null when there is none.
Result<std::shared_ptr<CounterPage>> SharedCounters() {
  ARC_ASSIGN(const int fd, DescriptorFrom(kCounterFd));
  if (fd < 0) return std::shared_ptr<CounterPage>();
  Fd copy(::dup(fd));
  if (!copy.valid()) return Status::FromErrno(errno, kCounterFd);
  return CounterPage::Attach(std::move(copy));
}

Result<std::shared_ptr<feed::Reader>> OpenReader(const FeedParams& params,
                                                 feed::Remainder remainder) {
  ARC_ASSIGN(const int broker, DescriptorFrom(kBrokerFd));
  if (broker < 0) {
    return FailedPrecondition(std::string("feed '") + params.feed +
                              "' can be read only inside a node of a run (" + kBrokerFd +
                              " is not set)");
  }
  ARC_ASSIGN(std::shared_ptr<CounterPage> counters, SharedCounters());
  feed::ReaderOptions options;
  options.feed = params.feed;
  options.batch_size = static_cast<std::size_t>(params.batch_size);
  options.remainder = remainder;
  options.counters = std::move(counters);
  if (params.shuffle) options.shuffle_seed = static_cast<std::uint64_t>(params.seed);
  ARC_ASSIGN(std::unique_ptr<feed::Reader> reader,
             feed::Reader::Open(broker, std::move(options), Deadline::After(kOpenTimeout)));
  return std::shared_ptr<feed::Reader>(std::move(reader));
}

class FeedDataset final : public data::DatasetBase {
 public:
  FeedDataset(OpKernelContext* ctx, FeedParams params, feed::Remainder remainder,
              DataTypeVector types, std::vector<PartialTensorShape> shapes)
      : DatasetBase(data::DatasetContext(ctx)),
        params_(std::move(params)),
        remainder_(remainder),
        types_(std::move(types)),
        shapes_(std::move(shapes)) {}

  std::unique_ptr<data::IteratorBase> MakeIteratorInternal(
      const std::string& prefix) const override;
  const DataTypeVector& output_dtypes() const override { return types_; }
  const std::vector<PartialTensorShape>& output_shapes() const override { return shapes_; }
  std::string DebugString() const override { return "Arcflow>FeedDataset(" + params_.feed + ")"; }
  absl::Status InputDatasets(std::vector<const DatasetBase*>* inputs) const override {
    inputs->clear();
    return absl::OkStatus();
  }
  /// The feed lies in the agent; a saved position stays valid as long as the run lives.
  absl::Status CheckExternalState() const override { return absl::OkStatus(); }
  /// Not known before the feed has ended on all ranks.
  int64_t CardinalityInternal(data::CardinalityOptions) const override {
    return data::kUnknownCardinality;
  }

 protected:
  absl::Status AsGraphDefInternal(data::SerializationContext* ctx, DatasetGraphDefBuilder* b,
                                  Node** output) const override;

 private:
  class Iterator;

  const FeedParams params_;
  const feed::Remainder remainder_;
  const DataTypeVector types_;
  const std::vector<PartialTensorShape> shapes_;
};

/// One pass over the feed, at the pace of its consumer.
class FeedDataset::Iterator final : public data::DatasetIterator<FeedDataset> {
 public:
  explicit Iterator(const Params& params) : DatasetIterator<FeedDataset>(params) {}
  ~Iterator() override {
    if (deregister_) deregister_();
    if (ahead_) reader_->Cancel();  // which may wait for rows
  }

  absl::Status Initialize(data::IteratorContext* ctx) override {
    mutex_lock lock(mu_);
    auto reader = OpenReader(dataset()->params_, dataset()->remainder_);
    if (!reader.ok()) return ToTf(reader.status());
    reader_ = std::move(reader).value();
    TF_RETURN_IF_ERROR(FindColumns());
    return RegisterCancellationCallback(
        ctx->cancellation_manager(), [reader = reader_] { reader->Cancel(); }, &deregister_);
  }

 protected:
  absl::Status GetNextInternal(data::IteratorContext* ctx, std::vector<Tensor>* out,
                               bool* end_of_sequence) override {
    mutex_lock lock(mu_);
    TF_RETURN_IF_ERROR(BeginPass());
    tensorflow::Allocator* const allocator = ctx->allocator({});  // lives as long as the process
    Gathered next;
    if (dataset()->params_.shuffle) {
      if (!ahead_) {
        position_ = static_cast<std::int64_t>(reader_->position());
        ahead_.emplace([this, allocator](Gathered* last) { return Take(allocator, last); },
                       GatherAhead::Limits());
      }
      const auto asked = std::chrono::steady_clock::now();
      next = ahead_->Next();
      if (next.status.ok()) {  // rows count as used when they are handed out
        reader_->HandOut(next.batch.get(), std::chrono::steady_clock::now() - asked);
      }
    } else {
      next = Read(allocator);
    }
    TF_RETURN_IF_ERROR(next.status);
    *end_of_sequence = next.end;
    if (!next.end) ++position_;
    *out = std::move(next.element);
    return absl::OkStatus();
  }

  /// At the start of a pass rows are addressed by number, so that what is skipped is neither waited
  /// for nor counted as used.
  absl::Status SkipInternal(data::IteratorContext* ctx, int num_to_skip, bool* end_of_sequence,
                            int* num_skipped) override {
    {
      mutex_lock lock(mu_);
      TF_RETURN_IF_ERROR(BeginPass());
      if (!ahead_ && reader_->position() == 0 && num_to_skip > 0) {
        TF_RETURN_IF_ERROR(ToTf(reader_->Seek(static_cast<std::uint64_t>(num_to_skip))));
        *num_skipped = num_to_skip;
        *end_of_sequence = false;  // the next step tells
        return absl::OkStatus();
      }
    }
    return DatasetIterator<FeedDataset>::SkipInternal(ctx, num_to_skip, end_of_sequence,
                                                      num_skipped);
  }

  std::shared_ptr<data::model::Node> CreateNode(data::IteratorContext*,
                                                data::model::Node::Args args) const override {
    return data::model::MakeSourceNode(std::move(args));
  }

  absl::Status SaveInternal(data::SerializationContext*,
                            data::IteratorStateWriter* writer) override {
    mutex_lock lock(mu_);
    if (dataset()->params_.shuffle) {
      TF_RETURN_IF_ERROR(writer->WriteScalar(prefix(), kEpoch, epoch_));
      TF_RETURN_IF_ERROR(writer->WriteScalar(prefix(), kSeed, dataset()->params_.seed));
    }
    // What was handed out, which of rows that are gathered ahead only this iterator knows.
    const auto position = ahead_ ? position_ : static_cast<std::int64_t>(reader_->position());
    return writer->WriteScalar(prefix(), kStep, position);
  }

  absl::Status RestoreInternal(data::IteratorContext*, data::IteratorStateReader* reader) override {
    mutex_lock lock(mu_);
    if (ahead_) return absl::FailedPreconditionError("a pass that has begun cannot be restored");
    int64_t step = 0;
    TF_RETURN_IF_ERROR(reader->ReadScalar(prefix(), kStep, &step));
    if (step < 0) return absl::DataLossError("the saved position of a feed is negative");
    if (dataset()->params_.shuffle) TF_RETURN_IF_ERROR(RestoreEpoch(reader));
    return ToTf(reader_->Seek(static_cast<std::uint64_t>(step)));
  }

 private:
  /// Settles, when the first element is wanted, which epoch this is.
  absl::Status BeginPass() {
    if (!dataset()->params_.shuffle || epoch_ != kNoEpoch) return absl::OkStatus();
    epoch_ = ShuffleEpochs::Instance().Take(dataset()->params_.shuffle_id);
    return ToTf(reader_->Seek(reader_->position(), static_cast<std::uint64_t>(epoch_)));
  }

  /// The saved pass goes on in its order; the ones after it follow.
  absl::Status RestoreEpoch(data::IteratorStateReader* reader) {
    int64_t seed = 0;
    TF_RETURN_IF_ERROR(reader->ReadScalar(prefix(), kSeed, &seed));
    TF_RETURN_IF_ERROR(reader->ReadScalar(prefix(), kEpoch, &epoch_));
    if (seed != dataset()->params_.seed) {
      return absl::InvalidArgumentError(
          "feed '" + dataset()->params_.feed + "': the saved position is of shuffle seed " +
          std::to_string(seed) + ", this dataset has " + std::to_string(dataset()->params_.seed));
    }
    if (epoch_ == kNoEpoch) return absl::OkStatus();
    if (epoch_ < 0) return absl::DataLossError("the saved epoch of a feed is negative");
    ShuffleEpochs::Instance().Set(dataset()->params_.shuffle_id, epoch_ + 1);
    return ToTf(reader_->Seek(0, static_cast<std::uint64_t>(epoch_)));
  }

  /// Where in the feed's schema lies what a component is made of.
  struct Component {
    std::string kind;
    std::size_t column = 0;
    std::size_t bytes = 0;
  };

  /// Where the wanted columns are, and that they are what the dataset promised.
  absl::Status FindColumns() {
    const FeedParams& params = dataset()->params_;
    for (std::size_t i = 0; i < params.columns.size(); ++i) {
      Component component;
      component.kind = params.kinds[i];
      TF_RETURN_IF_ERROR(Find(params.columns[i], &component.column));
      if (component.kind == kStrings) TF_RETURN_IF_ERROR(Find(params.bytes[i], &component.bytes));
      TF_RETURN_IF_ERROR(CheckPromise(component, i));
      components_.push_back(std::move(component));
    }
    return absl::OkStatus();
  }

  std::string Where(const std::string& name) const {
    return "feed '" + dataset()->params_.feed + "': column '" + name + "'";
  }

  absl::Status Find(const std::string& name, std::size_t* at) const {
    const columnar::Schema& schema = reader_->schema();
    for (*at = 0; *at < schema.columns.size(); ++*at) {
      if (schema.columns[*at].name == name) return absl::OkStatus();
    }
    return absl::NotFoundError(Where(name) + " does not exist");
  }

  absl::Status CheckPromise(const Component& component, std::size_t i) const {
    const columnar::Column& column = reader_->schema().columns[component.column];
    const bool ragged = component.kind == kSplits || component.kind == kValues;
    const bool is_string = column.dtype == columnar::DType::kString;
    if (ragged ? !column.variable() || is_string
               : component.kind == kColumn && column.variable() && !is_string) {
      return absl::InvalidArgumentError(Where(column.name) + " is " +
                                        (ragged ? "not ragged" : "ragged"));
    }
    DataType type = TypeOf(column.dtype);
    PartialTensorShape shape({-1});
    if (component.kind == kStrings) type = tensorflow::DT_STRING;
    if (component.kind != kSplits && !(component.kind == kStrings && column.variable())) {
      for (const std::int64_t dim : column.row_shape) shape.AddDim(dim);
    }
    if (component.kind == kSplits) type = tensorflow::DT_INT64;
    if (type != dataset()->types_[i]) {
      const bool splits = component.kind == kSplits;
      const std::string is = splits ? "int64" : std::string(columnar::NameOf(column.dtype));
      return absl::InvalidArgumentError(Where(column.name) + " is " + is + ", not " +
                                        DataTypeString(dataset()->types_[i]));
    }
    if (!dataset()->shapes_[i].IsCompatibleWith(shape)) {
      return absl::InvalidArgumentError(Where(column.name) + " has shape " + shape.DebugString() +
                                        ", not " + dataset()->shapes_[i].DebugString());
    }
    return absl::OkStatus();
  }

  /// `ragged` keeps what was read of a column, so that its splits and its values are of one piece.
  absl::Status Emit(const Component& component, const feed::Batch& batch,
                    std::map<std::size_t, feed::RaggedRows>* ragged,
                    tensorflow::Allocator* allocator, Tensor* out) {
    const columnar::Schema& schema = reader_->schema();
    const std::size_t column = component.column;
    if (component.kind == kColumn) return ColumnTensor(batch, schema, column, allocator, out);
    if (component.kind == kStrings) {
      return ArrayStringsTensor(batch, schema, column, component.bytes, allocator, out);
    }
    const auto [rows, fresh] = ragged->try_emplace(column);
    if (fresh) TF_RETURN_IF_ERROR(ToTf(feed::RaggedColumn(batch, schema, column, &rows->second)));
    if (component.kind == kValues) {
      return ItemsTensor(batch, schema.columns[column], rows->second, allocator, out);
    }
    *out = SplitsTensor(rows->second, allocator);
    return absl::OkStatus();
  }

  /// The next element, on the thread that asks for it.
  Gathered Read(tensorflow::Allocator* allocator) {
    Gathered next;
    const Result<std::optional<feed::Batch>> batch = reader_->Next(Deadline::Infinite());
    next.status = ToTf(batch.status());
    next.end = batch.ok() && !batch->has_value();
    if (!next.final()) next.status = Emit(allocator, **batch, &next.element);
    return next;
  }

  /// As GatherAhead::Take.
  GatherAhead::Make Take(tensorflow::Allocator* allocator, Gathered* last) {
    Result<std::optional<feed::Batch>> next = reader_->Take(Deadline::Infinite());
    last->status = ToTf(next.status());
    last->end = next.ok() && !next->has_value();
    if (last->final()) return nullptr;
    auto batch = std::make_shared<const feed::Batch>(*std::move(*next));
    return [this, allocator, batch = std::move(batch)] {
      Gathered made;
      made.batch = batch;
      made.status = Emit(allocator, *batch, &made.element);
      return made;
    };
  }

  absl::Status Emit(tensorflow::Allocator* allocator, const feed::Batch& batch,
                    std::vector<Tensor>* out) {
    out->reserve(components_.size() + 1);
    std::map<std::size_t, feed::RaggedRows> ragged;
    for (const Component& component : components_) {
      Tensor tensor;
      TF_RETURN_IF_ERROR(Emit(component, batch, &ragged, allocator, &tensor));
      out->push_back(std::move(tensor));
    }
    if (dataset()->params_.sample_weight) out->push_back(WeightTensor(batch, allocator));
    return absl::OkStatus();
  }

  mutex mu_;
  std::shared_ptr<feed::Reader> reader_;  // used under mu_ or by ahead_ alone, but for Cancel
  std::vector<Component> components_;     // fixed once initialized
  int64_t epoch_ = kNoEpoch;              // of a shuffled pass
  int64_t position_ = 0;                  // steps handed out since ahead_ began
  std::function<void()> deregister_;
  std::optional<GatherAhead> ahead_;  // of a shuffled pass; last: its thread uses the rest
};

std::unique_ptr<data::IteratorBase> FeedDataset::MakeIteratorInternal(
    const std::string& prefix) const {
  return std::make_unique<Iterator>(Iterator::Params{this, prefix + "::ArcflowFeed"});
}

absl::Status FeedDataset::AsGraphDefInternal(data::SerializationContext*, DatasetGraphDefBuilder* b,
                                             Node** output) const {
  Node* feed = nullptr;
  Node* columns = nullptr;
  Node* bytes = nullptr;
  Node* batch_size = nullptr;
  TF_RETURN_IF_ERROR(b->AddScalar(tstring(params_.feed), &feed));
  TF_RETURN_IF_ERROR(
      b->AddVector(std::vector<tstring>(params_.columns.begin(), params_.columns.end()), &columns));
  TF_RETURN_IF_ERROR(
      b->AddVector(std::vector<tstring>(params_.bytes.begin(), params_.bytes.end()), &bytes));
  TF_RETURN_IF_ERROR(b->AddScalar(params_.batch_size, &batch_size));
  tensorflow::AttrValue kinds;
  b->BuildAttrValue(params_.kinds, &kinds);
  tensorflow::AttrValue remainder;
  tensorflow::AttrValue sample_weight;
  b->BuildAttrValue(params_.remainder, &remainder);
  b->BuildAttrValue(params_.sample_weight, &sample_weight);
  tensorflow::AttrValue shuffle;
  tensorflow::AttrValue seed;
  tensorflow::AttrValue shuffle_id;
  b->BuildAttrValue(params_.shuffle, &shuffle);
  b->BuildAttrValue(params_.seed, &seed);
  b->BuildAttrValue(params_.shuffle_id, &shuffle_id);
  return b->AddDataset(this, {feed, columns, bytes, batch_size},
                       {{"kinds", kinds},
                        {"remainder", remainder},
                        {"sample_weight", sample_weight},
                        {"shuffle", shuffle},
                        {"seed", seed},
                        {"shuffle_id", shuffle_id}},
                       output);
}

class FeedDatasetOp final : public data::DatasetOpKernel {
 public:
  explicit FeedDatasetOp(OpKernelConstruction* ctx) : DatasetOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("remainder", &remainder_name_));
    OP_REQUIRES_OK(ctx, RemainderFromName(remainder_name_, &remainder_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("sample_weight", &sample_weight_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("kinds", &kinds_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shuffle", &shuffle_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("seed", &seed_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shuffle_id", &shuffle_id_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("output_types", &types_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("output_shapes", &shapes_));
  }

 protected:
  void MakeDataset(OpKernelContext* ctx, data::DatasetBase** output) override {
    FeedParams params;
    tstring feed;
    std::vector<tstring> columns;
    std::vector<tstring> bytes;
    OP_REQUIRES_OK(ctx, data::ParseScalarArgument<tstring>(ctx, "feed", &feed));
    OP_REQUIRES_OK(ctx, data::ParseVectorArgument<tstring>(ctx, "columns", &columns));
    OP_REQUIRES_OK(ctx, data::ParseVectorArgument<tstring>(ctx, "bytes", &bytes));
    OP_REQUIRES_OK(ctx, data::ParseScalarArgument<int64_t>(ctx, "batch_size", &params.batch_size));
    params.feed = feed;
    params.columns.assign(columns.begin(), columns.end());
    params.bytes.assign(bytes.begin(), bytes.end());
    params.kinds = kinds_;
    params.remainder = remainder_name_;
    params.sample_weight = sample_weight_;
    params.shuffle = shuffle_;
    params.seed = seed_;
    params.shuffle_id = shuffle_id_;
    OP_REQUIRES(ctx, params.batch_size > 0,
                absl::InvalidArgumentError("batch_size is " + std::to_string(params.batch_size)));
    const std::size_t components = params.columns.size() + (sample_weight_ ? 1 : 0);
    OP_REQUIRES(ctx,
                components == types_.size() && components == shapes_.size() &&
                    kinds_.size() == columns.size() && bytes.size() == columns.size(),
                absl::InvalidArgumentError(
                    "one type, kind and shape is needed for each column and the weight"));
    OP_REQUIRES(ctx, !sample_weight_ || types_.back() == tensorflow::DT_FLOAT,
                absl::InvalidArgumentError("the sample weight is float32"));
    *output = new FeedDataset(ctx, std::move(params), remainder_, types_, shapes_);
  }

 private:
  std::string remainder_name_;
  feed::Remainder remainder_ = feed::Remainder::kPad;
  bool sample_weight_ = false;
  std::vector<std::string> kinds_;
  bool shuffle_ = false;
  std::int64_t seed_ = 0;
  std::string shuffle_id_;
  DataTypeVector types_;
  std::vector<PartialTensorShape> shapes_;
};

// Stateful, so that nothing folds it into a constant.
REGISTER_OP("Arcflow>FeedDataset")
    .Input("feed: string")
    .Input("columns: string")
    .Input("bytes: string")
    .Input("batch_size: int64")
    .Output("handle: variant")
    .Attr("remainder: {'pad', 'drop', 'refuse', 'partial'} = 'pad'")
    .Attr("kinds: list({'column', 'splits', 'values', 'strings'})")
    .Attr("sample_weight: bool = false")
    .Attr("shuffle: bool = false")
    .Attr("seed: int = 0")
    .Attr("shuffle_id: string = ''")
    .Attr("output_types: list(type) >= 1")
    .Attr("output_shapes: list(shape) >= 1")
    .SetIsStateful()
    .SetDoNotOptimize()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle unused;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 0, &unused));
      return tensorflow::shape_inference::ScalarShape(c);
    });
REGISTER_KERNEL_BUILDER(Name("Arcflow>FeedDataset").Device(tensorflow::DEVICE_CPU), FeedDatasetOp);

/// Says which epoch the next pass of a shuffled dataset is.
class ShuffleEpochOp final : public tensorflow::OpKernel {
 public:
  explicit ShuffleEpochOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shuffle_id", &shuffle_id_));
  }
  void Compute(OpKernelContext* ctx) override {
    const std::int64_t epoch = ctx->input(0).scalar<std::int64_t>()();
    OP_REQUIRES(ctx, epoch >= 0,
                absl::InvalidArgumentError("epoch " + std::to_string(epoch) + " is negative"));
    ShuffleEpochs::Instance().Set(shuffle_id_, epoch);
  }

 private:
  std::string shuffle_id_;
};

REGISTER_OP("Arcflow>ShuffleEpoch")
    .Input("epoch: int64")
    .Attr("shuffle_id: string")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle unused;
      return c->WithRank(c->input(0), 0, &unused);
    });
REGISTER_KERNEL_BUILDER(Name("Arcflow>ShuffleEpoch").Device(tensorflow::DEVICE_CPU),
                        ShuffleEpochOp);

}  // namespace
}  // namespace arcflow::tf
