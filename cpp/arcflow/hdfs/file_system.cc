// SPDX-License-Identifier: Apache-2.0
// Operations on names: resolve, ask the NameNode, read the answer.
#include "arcflow/hdfs/file_system.h"

#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>

#include "arcflow/hdfs/glob.h"
#include "arcflow/hdfs/kind_cache.h"
#include "arcflow/hdfs/uri.h"
#include "arcflow/hdfs/work_pool.h"

namespace arcflow::hdfs {
namespace {

constexpr std::size_t kThreads = 8;
constexpr std::chrono::milliseconds kListingLife{1000};

/// A name, and where it is.
struct Spot {
  std::string uri;  // clean, for messages and as key
  Place place;
  NameNode* name_node = nullptr;  // null for a folder of a mount table
};

FileStatus Folder(std::string name) {
  FileStatus status;
  status.name = std::move(name);
  status.is_directory = true;
  return status;
}

}  // namespace

struct FileSystem::Impl {
  ClusterConfig config;
  Options options;
  std::unique_ptr<HttpClient> http;
  std::unique_ptr<BlockClient> blocks;  // null: all by WebHDFS
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<NameNode>> name_nodes;
  KindCache kinds{kListingLife};
  std::atomic<std::size_t> readahead{0};
  WorkPool pool{kThreads};  // last, so that its tasks end before what they use

  Result<Spot> Find(std::string_view uri);
  Result<Spot> FindReal(std::string_view uri);
  Result<FileStatus> Stat(const Spot& spot);
};

Result<Spot> FileSystem::Impl::Find(std::string_view uri) {
  Spot spot;
  ARC_ASSIGN(const Uri parsed, ParseUri(uri));
  spot.uri = parsed.ToString();
  ARC_ASSIGN(spot.place, config.Resolve(parsed));
  if (spot.place.is_mount_folder) return spot;
  const Service& service = spot.place.service;
  const std::string key = service.name + "|" + service.namenodes.front().ToString();
  const std::lock_guard lock(mutex);
  auto& slot = name_nodes[key];
  if (!slot) slot = std::make_unique<NameNode>(service, options, http.get());
  spot.name_node = slot.get();
  return spot;
}

/// For operations that need a NameNode.
Result<Spot> FileSystem::Impl::FindReal(std::string_view uri) {
  ARC_ASSIGN(Spot spot, Find(uri));
  if (spot.name_node == nullptr) {
    return Status(Code::kPermissionDenied, spot.uri + " is a folder of the mount table");
  }
  return spot;
}

Result<FileStatus> FileSystem::Impl::Stat(const Spot& spot) {
  if (spot.name_node == nullptr) return Folder("");
  auto body = spot.name_node->Call({"GET", "GETFILESTATUS", spot.place.path, {}});
  if (!body.ok()) return body.status();
  auto status = ParseFileStatus(*body);
  if (!status.ok()) return status.status().WithContext(spot.uri);
  kinds.Put(spot.uri, status->is_directory);
  return status;
}

FileSystem::FileSystem(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FileSystem::~FileSystem() = default;

Result<std::unique_ptr<FileSystem>> FileSystem::Make(ClusterConfig config, Options options) {
  auto impl = std::make_unique<Impl>();
  impl->config = std::move(config);
  impl->options = std::move(options);
  ARC_ASSIGN(impl->http, HttpClient::Make(impl->options));
  if (impl->options.direct) impl->blocks = std::make_unique<BlockClient>(impl->options);
  return std::unique_ptr<FileSystem>(new FileSystem(std::move(impl)));
}

Result<FileSystem*> FileSystem::Default() {
  static std::mutex mutex;
  static std::map<std::string, FileSystem*> made;  // by folder of configuration
  static pid_t owner = 0;
  const std::lock_guard lock(mutex);
  if (owner != getpid()) made.clear();  // a parent's are left as they are: its threads are not here
  owner = getpid();
  const std::string folder = ClusterConfig::EnvironmentFolder();
  if (const auto it = made.find(folder); it != made.end()) return it->second;
  ARC_ASSIGN(ClusterConfig config, ClusterConfig::Load(folder));
  Options options = Options::From(config.properties());
  ARC_ASSIGN(auto fresh, Make(std::move(config), std::move(options)));
  return made[folder] = fresh.release();
}

Result<FileStatus> FileSystem::Stat(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->Find(uri));
  return impl_->Stat(spot);
}

Result<std::vector<FileStatus>> FileSystem::List(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->Find(uri));
  std::vector<FileStatus> entries;
  if (spot.name_node == nullptr) {
    for (const std::string& child : spot.place.children) entries.push_back(Folder(child));
    return entries;
  }
  ARC_ASSIGN(const std::string body,
             spot.name_node->Call({"GET", "LISTSTATUS", spot.place.path, {}}));
  auto parsed = ParseFileStatuses(body);
  if (!parsed.ok()) return parsed.status().WithContext(spot.uri);
  entries = std::move(*parsed);
  if (entries.size() == 1 && entries[0].name.empty()) {  // a file lists itself
    return FailedPrecondition(spot.uri + " is a file, not a folder");
  }
  const std::string base = spot.uri.back() == '/' ? spot.uri : spot.uri + "/";
  for (const FileStatus& one : entries) impl_->kinds.Put(base + one.name, one.is_directory);
  return entries;
}

Result<bool> FileSystem::IsDirectory(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->Find(uri));
  if (const auto known = impl_->kinds.IsDirectory(spot.uri)) return *known;
  ARC_ASSIGN(const FileStatus status, impl_->Stat(spot));
  return status.is_directory;
}

Result<std::vector<std::string>> FileSystem::Glob(std::string_view pattern) {
  ARC_ASSIGN(const Uri parsed, ParseUri(pattern));
  const std::string base = parsed.scheme + "://" + parsed.authority;
  ARC_ASSIGN(
      std::vector<std::string> paths,
      hdfs::Glob(parsed.path, [&](const std::string& folder) { return List(base + folder); }));
  for (std::string& path : paths) path.insert(0, base);
  return paths;
}

Status FileSystem::MakeDirectories(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->Find(uri));
  if (spot.name_node == nullptr) return Status::Ok();
  ARC_ASSIGN(const std::string body, spot.name_node->Call({"PUT", "MKDIRS", spot.place.path, {}}));
  ARC_ASSIGN(const bool made, ParseBoolean(body));
  return made ? Status::Ok() : FailedPrecondition(spot.uri + ": the folder could not be made");
}

Status FileSystem::Delete(std::string_view uri, bool recursive) {
  ARC_ASSIGN(const Spot spot, impl_->FindReal(uri));
  impl_->kinds.Forget(spot.uri);
  const Operation remove{
      "DELETE", "DELETE", spot.place.path, {{"recursive", recursive ? "true" : "false"}}};
  bool uncertain = false;
  ARC_ASSIGN(const std::string body,
             spot.name_node->Call(remove, Deadline::Infinite(), &uncertain));
  ARC_ASSIGN(const bool deleted, ParseBoolean(body));
  // A try that broke off may have deleted it.
  return deleted || uncertain ? Status::Ok() : NotFound("DELETE: there is no " + spot.uri);
}

Status FileSystem::Rename(std::string_view from, std::string_view to, bool overwrite) {
  ARC_ASSIGN(const Spot source, impl_->FindReal(from));
  ARC_ASSIGN(const Spot target, impl_->FindReal(to));
  if (source.name_node != target.name_node) {
    return FailedPrecondition("cannot rename " + source.uri + " to " + target.uri +
                              ": they lie in different name spaces");
  }
  impl_->kinds.Forget(source.uri);
  impl_->kinds.Forget(target.uri);
  return RenameFile(source.name_node, source.place.path, target.place.path, overwrite);
}

Result<std::unique_ptr<FileReader>> FileSystem::Open(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->Find(uri));
  ARC_ASSIGN(const FileStatus status, impl_->Stat(spot));
  if (status.is_directory) return FailedPrecondition(spot.uri + " is a folder, not a file");
  // What lies encrypted or striped on the DataNodes is put together by WebHDFS.
  BlockClient* const blocks = status.is_plain ? impl_->blocks.get() : nullptr;
  auto fetcher = std::make_unique<RangeFetcher>(spot.place.path, status.block_bytes, spot.name_node,
                                                impl_->http.get(), impl_->options, blocks);
  const auto measure = [impl = impl_.get(), spot]() -> Result<std::uint64_t> {
    ARC_ASSIGN(const FileStatus now, impl->Stat(spot));
    return now.length;
  };
  return std::make_unique<FileReader>(std::move(fetcher), status.length, measure, &impl_->pool,
                                      impl_->options, &impl_->readahead);
}

Result<std::unique_ptr<FileWriter>> FileSystem::Create(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->FindReal(uri));
  if (spot.place.path == "/") return FailedPrecondition(spot.uri + " is a folder, not a file");
  impl_->kinds.Forget(spot.uri);
  return std::make_unique<FileWriter>(spot.place.path, FileWriter::Mode::kReplace, 0,
                                      spot.name_node, impl_->http.get(), impl_->options);
}

Result<std::unique_ptr<FileWriter>> FileSystem::OpenForAppend(std::string_view uri) {
  ARC_ASSIGN(const Spot spot, impl_->FindReal(uri));
  auto status = impl_->Stat(spot);
  if (!status.ok()) {
    if (status.status().code() == Code::kNotFound) return Create(uri);
    return status.status();
  }
  if (status->is_directory) return FailedPrecondition(spot.uri + " is a folder, not a file");
  return std::make_unique<FileWriter>(spot.place.path, FileWriter::Mode::kAppend, status->length,
                                      spot.name_node, impl_->http.get(), impl_->options);
}

Result<std::string> FileSystem::ReadAll(std::string_view uri, std::size_t max_bytes) {
  ARC_ASSIGN(const auto reader, Open(uri));
  const std::uint64_t size = reader->size();
  if (size > max_bytes) {
    return ResourceExhausted(std::string(uri) + " has " + std::to_string(size) +
                             " bytes, over the bound of " + std::to_string(max_bytes));
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  ARC_ASSIGN(const std::size_t n, reader->Read(0, bytes));
  bytes.resize(n);
  return bytes;
}

Status FileSystem::WriteAll(std::string_view uri, std::string_view bytes) {
  ARC_ASSIGN(const auto writer, Create(uri));
  ARC_TRY(writer->Append(bytes));
  return writer->Close();
}

Result<std::string> FileSystem::NewDelegationToken(std::string_view uri, std::string_view renewer) {
  ARC_ASSIGN(const Spot spot, impl_->FindReal(uri));
  Operation get{"GET", "GETDELEGATIONTOKEN", "/", {}};
  if (!renewer.empty()) get.parameters.emplace_back("renewer", std::string(renewer));
  ARC_ASSIGN(const std::string body, spot.name_node->Call(get));
  return ParseToken(body);
}

void FileSystem::ForgetListings() { impl_->kinds.Clear(); }

}  // namespace arcflow::hdfs
