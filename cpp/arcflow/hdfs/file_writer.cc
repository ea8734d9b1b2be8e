// SPDX-License-Identifier: Apache-2.0
// Collecting, sending in one request or as a stream, and giving the file its name.
#include "arcflow/hdfs/file_writer.h"

#include <random>

#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/uri.h"

namespace arcflow::hdfs {
namespace {

std::string TemporaryName(const std::string& path) {
  constexpr char kHex[] = "0123456789abcdef";
  std::random_device random;
  std::string tag;
  for (int i = 0; i < 12; ++i) tag.push_back(kHex[random() & 15]);
  const std::string folder = ParentPath(path);
  return (folder == "/" ? "" : folder) + "/." + BaseName(path) + ".arcflow-" + tag + ".tmp";
}

Result<FileStatus> StatPath(NameNode* name_node, const std::string& path) {
  ARC_ASSIGN(const std::string body, name_node->Call({"GET", "GETFILESTATUS", path, {}}));
  return ParseFileStatus(body);
}

}  // namespace

Status RenameFile(NameNode* name_node, const std::string& from, const std::string& to,
                  bool overwrite) {
  Operation rename{"PUT", "RENAME", from, {{"destination", to}}};
  if (overwrite) rename.parameters.emplace_back("renameoptions", "OVERWRITE");
  bool uncertain = false;
  auto body = name_node->Call(rename, Deadline::Infinite(), &uncertain);
  if (body.ok()) {
    // With options the answer has no body; without, or from HttpFS, a boolean.
    if (body->empty()) return Status::Ok();
    auto renamed = ParseBoolean(*body);
    if (!renamed.ok()) return renamed.status().WithContext("RENAME " + from);
    if (*renamed) return Status::Ok();
  }
  const bool source_there = StatPath(name_node, from).ok();
  const auto target = StatPath(name_node, to);
  if (!body.ok()) {
    // A try that broke off may have been done: then the next one did not find the source.
    const bool done =
        uncertain && body.status().code() == Code::kNotFound && !source_there && target.ok();
    return done ? Status::Ok() : body.status();
  }
  if (!source_there && uncertain && target.ok()) return Status::Ok();
  if (!source_there) return NotFound("RENAME: there is no " + from);
  if (target.ok() && overwrite && !target->is_directory) {  // HttpFS knows no options
    ARC_TRY(name_node->Call({"DELETE", "DELETE", to, {{"recursive", "false"}}}).status());
    return RenameFile(name_node, from, to, false);
  }
  if (target.ok()) return Status(Code::kAlreadyExists, "RENAME " + from + ": " + to + " exists");
  return FailedPrecondition("RENAME " + from + " to " + to + " was refused; is there the folder?");
}

FileWriter::FileWriter(std::string path, Mode mode, std::uint64_t size, NameNode* name_node,
                       HttpClient* http, const Options& options)
    : path_(std::move(path)),
      written_path_(mode == Mode::kAppend ? path_ : TemporaryName(path_)),
      name_node_(name_node),
      http_(http),
      options_(options),
      exists_(mode == Mode::kAppend),
      sent_(mode == Mode::kAppend ? size : 0) {}

FileWriter::~FileWriter() {
  if (!Close().ok()) Discard();
}

Status FileWriter::Fail(Status status) {
  failure_ = status.WithContext("writing " + path_ + " at offset " + std::to_string(sent_));
  stream_.reset();
  buffer_.clear();
  if (written_path_ != path_ && exists_) {
    // The error that led here counts; what cannot be deleted is hidden by its name.
    (void)name_node_->Call({"DELETE", "DELETE", written_path_, {{"recursive", "false"}}},
                           Deadline::AfterSeconds(10));
    exists_ = false;
  }
  return failure_;
}

Status FileWriter::Append(std::string_view bytes) {
  ARC_TRY(failure_);
  if (closed_) return FailedPrecondition("writing " + path_ + ": it is closed");
  if (stream_ == nullptr) {
    if (buffer_.size() + bytes.size() <= options_.write_buffer_bytes) {
      buffer_.append(bytes);
      return Status::Ok();
    }
    if (Status status = StartStream(); !status.ok()) return Fail(std::move(status));
  }
  if (Status status = stream_->Write(bytes); !status.ok()) return Fail(std::move(status));
  sent_ += bytes.size();
  return Status::Ok();
}

/// CREATE for a file that is not there yet, else APPEND.
Operation FileWriter::NextOperation() const {
  if (exists_) return {"POST", "APPEND", written_path_, {}};
  Operation create{"PUT", "CREATE", written_path_, {{"overwrite", "true"}}};
  if (!options_.replication.empty()) {
    create.parameters.emplace_back("replication", options_.replication);
  }
  if (options_.block_bytes != 0) {
    create.parameters.emplace_back("blocksize", std::to_string(options_.block_bytes));
  }
  return create;
}

Status FileWriter::StartStream() {
  const Operation operation = NextOperation();
  std::string excluded;
  Status last;
  for (int attempt = 0; attempt < options_.attempts; ++attempt) {
    if (attempt > 0) Pause(options_, attempt - 1, Deadline::Infinite());
    ARC_ASSIGN(HttpUrl data_node, LocateBut(operation, &excluded));
    const std::string host = data_node.host;
    stream_ = std::make_unique<Upload>(http_, operation.method, std::move(data_node),
                                       options_.write_buffer_bytes);
    last = stream_->AwaitStart();
    if (last.ok()) break;
    stream_.reset();
    if (last.code() != Code::kUnavailable) break;
    excluded = host;
  }
  ARC_TRY(last);
  exists_ = true;
  ARC_TRY(stream_->Write(buffer_));
  sent_ += buffer_.size();
  buffer_.clear();
  buffer_.shrink_to_fit();
  return Status::Ok();
}

/// A DataNode on another host than `excluded`; clears it when there is none.
Result<HttpUrl> FileWriter::LocateBut(const Operation& operation, std::string* excluded) {
  if (!excluded->empty()) {
    Operation elsewhere = operation;
    elsewhere.parameters.emplace_back("excludedatanodes", *excluded);
    auto found = name_node_->Locate(elsewhere);
    if (found.ok()) return found;
    excluded->clear();
  }
  return name_node_->Locate(operation);
}

Status FileWriter::EndStream() {
  const Status status = stream_->Finish();
  stream_.reset();
  return status;
}

Result<std::uint64_t> FileWriter::LengthThere() {
  ARC_ASSIGN(const FileStatus status, StatPath(name_node_, written_path_));
  return status.length;
}

/// In one request, which can be repeated because the bytes are still here.
Status FileWriter::SendBuffer() {
  const bool appending = exists_;
  std::string excluded;
  Status last;
  for (int attempt = 0; attempt < options_.attempts; ++attempt) {
    if (attempt > 0) Pause(options_, attempt - 1, Deadline::Infinite());
    if (attempt > 0 && appending) {  // a try that broke off may have been done
      auto length = LengthThere();
      if (length.ok() && *length == sent_ + buffer_.size()) return Status::Ok();
      if (length.ok() && *length != sent_) {
        return DataLoss("an append broke off; the file has " + std::to_string(*length) +
                        " bytes now: " + std::string(last.message()));
      }
    }
    const Operation operation = NextOperation();
    auto data_node = LocateBut(operation, &excluded);
    if (!data_node.ok()) return data_node.status();
    last = SendBytes(http_, operation.method, *data_node, buffer_);
    if (last.ok() || (last.code() != Code::kUnavailable && last.code() != Code::kDataLoss)) break;
    excluded = data_node->host;
  }
  if (last.ok() || !appending) exists_ = true;  // also a failed CREATE may have left a file
  return last;
}

Status FileWriter::Send() {
  if (stream_ != nullptr) return EndStream();
  if (buffer_.empty() && exists_) return Status::Ok();
  ARC_TRY(SendBuffer());
  sent_ += buffer_.size();
  buffer_.clear();
  return Status::Ok();
}

Status FileWriter::Publish() {
  if (written_path_ == path_) return Status::Ok();
  ARC_TRY(RenameFile(name_node_, written_path_, path_, true));
  written_path_ = path_;
  return Status::Ok();
}

Status FileWriter::Flush() {
  ARC_TRY(failure_);
  if (closed_ || position() == 0) return Status::Ok();
  if (Status status = Send(); !status.ok()) return Fail(std::move(status));
  if (Status status = Publish(); !status.ok()) return Fail(std::move(status));
  return Status::Ok();
}

Status FileWriter::Close() {
  ARC_TRY(failure_);
  if (closed_) return Status::Ok();
  if (Status status = Send(); !status.ok()) return Fail(std::move(status));
  if (Status status = Publish(); !status.ok()) return Fail(std::move(status));
  closed_ = true;
  return Status::Ok();
}

void FileWriter::Discard() {
  if (closed_ || !failure_.ok()) return;
  (void)Fail(Cancelled("it was given up"));
}

}  // namespace arcflow::hdfs
