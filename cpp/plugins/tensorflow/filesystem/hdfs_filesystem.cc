// SPDX-License-Identifier: Apache-2.0
// hdfs://, webhdfs://, swebhdfs:// and viewfs:// for TensorFlow: tables of C functions over
// hdfs::FileSystem. No logic of its own.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arcflow/hdfs/file_system.h"
#include "arcflow/hdfs/uri.h"
#include "tensorflow/c/experimental/filesystem/filesystem_interface.h"
#include "tf_status.h"

namespace arcflow::tf {
namespace {

using hdfs::FileReader;
using hdfs::FileSystem;
using hdfs::FileWriter;

constexpr const char* kSchemes[] = {"hdfs", "webhdfs", "swebhdfs", "viewfs"};
constexpr std::int64_t kNsPerMs = 1'000'000;

char* Duplicate(std::string_view text) {
  auto* out = static_cast<char*>(std::malloc(text.size() + 1));
  std::memcpy(out, text.data(), text.size());
  out[text.size()] = '\0';
  return out;
}

/// Calls `call(file system)` and reports how it went.
template <typename Call>
void With(TF_Status* out, Call call) {
  auto file_system = FileSystem::Default();
  ToTf(file_system.ok() ? call(**file_system) : file_system.status(), out);
}

namespace random_access_file {

FileReader* Of(const TF_RandomAccessFile* file) {
  return static_cast<FileReader*>(file->plugin_file);
}
void Cleanup(TF_RandomAccessFile* file) { delete Of(file); }

std::int64_t Read(const TF_RandomAccessFile* file, std::uint64_t offset, std::size_t n,
                  char* buffer, TF_Status* status) {
  const auto got = Of(file)->Read(offset, {buffer, n});
  if (!got.ok()) {
    ToTf(got.status(), status);
    return -1;
  }
  // Fewer bytes than asked for is how TensorFlow sees the end.
  if (*got < n) {
    TF_SetStatus(status, TF_OUT_OF_RANGE, "end of file");
  } else {
    TF_SetStatus(status, TF_OK, "");
  }
  return static_cast<std::int64_t>(*got);
}

}  // namespace random_access_file

namespace writable_file {

FileWriter* Of(const TF_WritableFile* file) { return static_cast<FileWriter*>(file->plugin_file); }
void Cleanup(TF_WritableFile* file) { delete Of(file); }
void Append(const TF_WritableFile* file, const char* bytes, std::size_t n, TF_Status* status) {
  ToTf(Of(file)->Append({bytes, n}), status);
}
std::int64_t Tell(const TF_WritableFile* file, TF_Status* status) {
  TF_SetStatus(status, TF_OK, "");
  return static_cast<std::int64_t>(Of(file)->position());
}
void Flush(const TF_WritableFile* file, TF_Status* status) { ToTf(Of(file)->Flush(), status); }
void Close(const TF_WritableFile* file, TF_Status* status) { ToTf(Of(file)->Close(), status); }

}  // namespace writable_file

namespace memory_region {

std::string* Of(const TF_ReadOnlyMemoryRegion* region) {
  return static_cast<std::string*>(region->plugin_memory_region);
}
void Cleanup(TF_ReadOnlyMemoryRegion* region) { delete Of(region); }
const void* Data(const TF_ReadOnlyMemoryRegion* region) { return Of(region)->data(); }
std::uint64_t Length(const TF_ReadOnlyMemoryRegion* region) { return Of(region)->size(); }

}  // namespace memory_region

namespace filesystem {

void Init(TF_Filesystem* filesystem, TF_Status* status) {
  filesystem->plugin_filesystem = nullptr;  // clusters are looked up when first used
  TF_SetStatus(status, TF_OK, "");
}
void Cleanup(TF_Filesystem*) {}

void NewRandomAccessFile(const TF_Filesystem*, const char* path, TF_RandomAccessFile* file,
                         TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(auto reader, fs.Open(path));
    file->plugin_file = reader.release();
    return Status::Ok();
  });
}

void NewWritableFile(const TF_Filesystem*, const char* path, TF_WritableFile* file,
                     TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(auto writer, fs.Create(path));
    file->plugin_file = writer.release();
    return Status::Ok();
  });
}

void NewAppendableFile(const TF_Filesystem*, const char* path, TF_WritableFile* file,
                       TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(auto writer, fs.OpenForAppend(path));
    file->plugin_file = writer.release();
    return Status::Ok();
  });
}

void NewReadOnlyMemoryRegion(const TF_Filesystem*, const char* path,
                             TF_ReadOnlyMemoryRegion* region, TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(std::string bytes, fs.ReadAll(path, SIZE_MAX));
    region->plugin_memory_region = new std::string(std::move(bytes));
    return Status::Ok();
  });
}

void CreateDir(const TF_Filesystem*, const char* path, TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    if (fs.Stat(path).ok()) return {Code::kAlreadyExists, std::string(path) + " exists"};
    return fs.MakeDirectories(path);
  });
}

void RecursivelyCreateDir(const TF_Filesystem*, const char* path, TF_Status* status) {
  With(status, [&](FileSystem& fs) { return fs.MakeDirectories(path); });
}

/// Deletes what is of the wanted kind; a folder only when it is empty.
void DeleteKind(const char* path, bool directory, TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(const auto there, fs.Stat(path));
    if (there.is_directory != directory) {
      return FailedPrecondition(std::string(path) +
                                (directory ? " is a file, not a folder" : " is a folder"));
    }
    return fs.Delete(path, false);
  });
}
void DeleteFile(const TF_Filesystem*, const char* path, TF_Status* status) {
  DeleteKind(path, false, status);
}
void DeleteDir(const TF_Filesystem*, const char* path, TF_Status* status) {
  DeleteKind(path, true, status);
}

void DeleteRecursively(const TF_Filesystem*, const char* path, std::uint64_t* undeleted_files,
                       std::uint64_t* undeleted_dirs, TF_Status* status) {
  *undeleted_files = *undeleted_dirs = 0;
  With(status, [&](FileSystem& fs) -> Status {
    const Status deleted = fs.Delete(path, true);
    if (!deleted.ok()) *undeleted_dirs = 1;
    return deleted;
  });
}

void RenameFile(const TF_Filesystem*, const char* from, const char* to, TF_Status* status) {
  With(status, [&](FileSystem& fs) { return fs.Rename(from, to, /*overwrite=*/true); });
}

void PathExists(const TF_Filesystem*, const char* path, TF_Status* status) {
  With(status, [&](FileSystem& fs) { return fs.IsDirectory(path).status(); });
}

void Stat(const TF_Filesystem*, const char* path, TF_FileStatistics* out, TF_Status* status) {
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(const auto there, fs.Stat(path));
    out->length = static_cast<std::int64_t>(there.length);
    out->mtime_nsec = there.modified_ms * kNsPerMs;
    out->is_directory = there.is_directory;
    return Status::Ok();
  });
}

bool IsDirectory(const TF_Filesystem*, const char* path, TF_Status* status) {
  bool directory = false;
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(directory, fs.IsDirectory(path));
    return directory ? Status::Ok() : FailedPrecondition(std::string(path) + " is no folder");
  });
  return directory;
}

std::int64_t GetFileSize(const TF_Filesystem*, const char* path, TF_Status* status) {
  std::int64_t size = -1;
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(const auto there, fs.Stat(path));
    if (there.is_directory) return FailedPrecondition(std::string(path) + " is a folder");
    size = static_cast<std::int64_t>(there.length);
    return Status::Ok();
  });
  return size;
}

/// Keeps the authority, which TensorFlow's own version drops.
char* TranslateName(const TF_Filesystem*, const char* uri) {
  const auto parsed = hdfs::ParseUri(uri);
  return Duplicate(parsed.ok() ? parsed->ToString() : std::string(uri));
}

int GiveNames(const std::vector<std::string>& names, char*** entries) {
  *entries = static_cast<char**>(std::calloc(names.size() + 1, sizeof(char*)));
  for (std::size_t i = 0; i < names.size(); ++i) (*entries)[i] = Duplicate(names[i]);
  return static_cast<int>(names.size());
}

int GetChildren(const TF_Filesystem*, const char* path, char*** entries, TF_Status* status) {
  int count = -1;
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(auto listed, fs.List(path));
    std::vector<std::string> names;
    names.reserve(listed.size());
    for (auto& one : listed) names.push_back(std::move(one.name));
    count = GiveNames(names, entries);
    return Status::Ok();
  });
  return count;
}

int GetMatchingPaths(const TF_Filesystem*, const char* glob, char*** entries, TF_Status* status) {
  int count = -1;
  With(status, [&](FileSystem& fs) -> Status {
    ARC_ASSIGN(const auto paths, fs.Glob(glob));
    count = GiveNames(paths, entries);
    return Status::Ok();
  });
  return count;
}

void FlushCaches(const TF_Filesystem*) {
  auto file_system = FileSystem::Default();
  if (file_system.ok()) (*file_system)->ForgetListings();
}

}  // namespace filesystem

template <typename Table>
Table* NewTable() {
  return static_cast<Table*>(std::calloc(1, sizeof(Table)));
}

TF_FilesystemOps* MakeFilesystemOps() {
  auto* ops = NewTable<TF_FilesystemOps>();
  ops->init = filesystem::Init;
  ops->cleanup = filesystem::Cleanup;
  ops->new_random_access_file = filesystem::NewRandomAccessFile;
  ops->new_writable_file = filesystem::NewWritableFile;
  ops->new_appendable_file = filesystem::NewAppendableFile;
  ops->new_read_only_memory_region_from_file = filesystem::NewReadOnlyMemoryRegion;
  ops->create_dir = filesystem::CreateDir;
  ops->recursively_create_dir = filesystem::RecursivelyCreateDir;
  ops->delete_file = filesystem::DeleteFile;
  ops->delete_dir = filesystem::DeleteDir;
  ops->delete_recursively = filesystem::DeleteRecursively;
  ops->rename_file = filesystem::RenameFile;
  ops->path_exists = filesystem::PathExists;
  ops->stat = filesystem::Stat;
  ops->is_directory = filesystem::IsDirectory;
  ops->get_file_size = filesystem::GetFileSize;
  ops->translate_name = filesystem::TranslateName;
  ops->get_children = filesystem::GetChildren;
  ops->get_matching_paths = filesystem::GetMatchingPaths;
  ops->flush_caches = filesystem::FlushCaches;
  return ops;
}

void FillOps(const char* scheme, TF_FilesystemPluginOps* out) {
  TF_SetFilesystemVersionMetadata(out);
  out->scheme = Duplicate(scheme);
  out->filesystem_ops = MakeFilesystemOps();
  out->random_access_file_ops = NewTable<TF_RandomAccessFileOps>();
  out->random_access_file_ops->cleanup = random_access_file::Cleanup;
  out->random_access_file_ops->read = random_access_file::Read;
  auto* writable = out->writable_file_ops = NewTable<TF_WritableFileOps>();
  writable->cleanup = writable_file::Cleanup;
  writable->append = writable_file::Append;
  writable->tell = writable_file::Tell;
  writable->flush = writable_file::Flush;
  writable->sync = writable_file::Flush;
  writable->close = writable_file::Close;
  auto* region = out->read_only_memory_region_ops = NewTable<TF_ReadOnlyMemoryRegionOps>();
  region->cleanup = memory_region::Cleanup;
  region->data = memory_region::Data;
  region->length = memory_region::Length;
}

}  // namespace
}  // namespace arcflow::tf

/// TensorFlow calls it once after loading the library, and frees the tables itself.
extern "C" __attribute__((visibility("default"))) void TF_InitPlugin(
    TF_FilesystemPluginInfo* info) {
  info->plugin_memory_allocate = [](std::size_t n) { return std::calloc(1, n); };
  info->plugin_memory_free = [](void* memory) { std::free(memory); };
  info->num_schemes = std::size(arcflow::tf::kSchemes);
  info->ops = static_cast<TF_FilesystemPluginOps*>(
      std::calloc(info->num_schemes, sizeof(TF_FilesystemPluginOps)));
  for (std::size_t i = 0; i < info->num_schemes; ++i) {
    arcflow::tf::FillOps(arcflow::tf::kSchemes[i], &info->ops[i]);
  }
}
