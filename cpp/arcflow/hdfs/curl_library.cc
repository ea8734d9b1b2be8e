// SPDX-License-Identifier: Apache-2.0
// Opens libcurl and finds its functions.
#include "arcflow/hdfs/curl_library.h"

#include <dlfcn.h>

#include <string>

namespace arcflow::hdfs {
namespace {

// curl.h makes a macro of it; its name is needed here.
#undef curl_easy_setopt
#undef curl_easy_getinfo

template <typename Function>
bool Find(void* handle, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(handle, name));
  return *out != nullptr;
}

Result<const CurlLibrary*> Open() {
  void* handle = nullptr;
  for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4"}) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
  }
  if (handle == nullptr) {
    const char* why = dlerror();
    return Unavailable(std::string("hdfs:// needs libcurl on this machine; install it (Debian and "
                                   "Ubuntu: libcurl4, Red Hat: libcurl): ") +
                       (why != nullptr ? why : "not found"));
  }
  static CurlLibrary library;
  CURLcode (*global_init)(long) = nullptr;  // NOLINT(google-runtime-int): libcurl's type
  curl_version_info_data* (*version_info)(CURLversion) = nullptr;
  CurlLibrary& l = library;
  const bool whole = Find(handle, "curl_global_init", &global_init) &&
                     Find(handle, "curl_version_info", &version_info) &&
                     Find(handle, "curl_easy_init", &l.easy_init) &&
                     Find(handle, "curl_easy_cleanup", &l.easy_cleanup) &&
                     Find(handle, "curl_easy_reset", &l.easy_reset) &&
                     Find(handle, "curl_easy_perform", &l.easy_perform) &&
                     Find(handle, "curl_easy_setopt", &l.easy_setopt) &&
                     Find(handle, "curl_easy_getinfo", &l.easy_getinfo) &&
                     Find(handle, "curl_easy_strerror", &l.easy_strerror) &&
                     Find(handle, "curl_slist_append", &l.slist_append) &&
                     Find(handle, "curl_slist_free_all", &l.slist_free_all);
  if (!whole) return Unavailable("the libcurl of this machine lacks functions that hdfs:// needs");
  if (global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) return Unavailable("libcurl does not start");
  l.has_negotiate = (version_info(CURLVERSION_NOW)->features & CURL_VERSION_SPNEGO) != 0;
  return &library;
}

}  // namespace

Result<const CurlLibrary*> CurlLibrary::Get() {
  static const Result<const CurlLibrary*> opened = Open();  // once, whichever thread comes first
  return opened;
}

}  // namespace arcflow::hdfs
