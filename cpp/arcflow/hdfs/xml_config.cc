// SPDX-License-Identifier: Apache-2.0
// Reads Hadoop's XML with expat; entities and includes are refused, so a file cannot name others.
#include "arcflow/hdfs/xml_config.h"

#include <expat.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

namespace arcflow::hdfs {
namespace {

constexpr int kMaxExpansions = 20;  // as Hadoop's MAX_SUBST
constexpr std::size_t kMaxExpanded = std::size_t{64} * 1024;

struct Property {
  std::string name, value;
  bool is_final = false;
};

/// State of one parse. Elements: configuration > property > {name, value, final, ...}.
struct Reader {
  XML_Parser parser = nullptr;
  int depth = 0;
  Property property;
  std::string* text = nullptr;
  std::string final_text;
  std::vector<Property> found;
  std::string refusal;
  XML_Size line = 0;

  void Refuse(std::string why) {
    if (!refusal.empty()) return;
    refusal = std::move(why);
    line = XML_GetCurrentLineNumber(parser);
    XML_StopParser(parser, XML_FALSE);
  }
};

void StartElement(void* data, const XML_Char* element, const XML_Char** /*attributes*/) {
  auto& r = *static_cast<Reader*>(data);
  const std::string_view name(element);
  const int depth = ++r.depth;
  if (name == "include" || name.find(":include") != std::string_view::npos) {
    return r.Refuse("xi:include is not followed: put the properties into the file itself");
  }
  if (depth == 1 && name != "configuration") {
    return r.Refuse("the outer element is <" + std::string(name.substr(0, 60)) +
                    ">, not <configuration>");
  }
  if (depth == 2) {
    r.property = {};
    r.final_text.clear();
  }
  r.text = nullptr;
  if (depth == 3 && name == "name") r.text = &r.property.name;
  if (depth == 3 && name == "value") r.text = &r.property.value;
  if (depth == 3 && name == "final") r.text = &r.final_text;
}

void EndElement(void* data, const XML_Char* element) {
  auto& r = *static_cast<Reader*>(data);
  if (r.depth-- == 2 && std::string_view(element) == "property") {
    r.property.name = Trimmed(r.property.name);
    r.property.is_final = Trimmed(r.final_text) == "true";
    if (!r.property.name.empty()) r.found.push_back(std::move(r.property));
    r.property = {};
  }
  r.text = nullptr;
}

void Characters(void* data, const XML_Char* text, int size) {
  auto& r = *static_cast<Reader*>(data);
  if (r.text != nullptr) r.text->append(text, static_cast<std::size_t>(size));
}

void StartDoctype(void* data, const XML_Char*, const XML_Char*, const XML_Char*, int) {
  static_cast<Reader*>(data)->Refuse("a DOCTYPE is not allowed in a configuration file");
}

std::string UserName() {
  char buffer[4096];
  passwd entry;
  passwd* found = nullptr;
  getpwuid_r(getuid(), &entry, buffer, sizeof buffer, &found);
  return found != nullptr ? found->pw_name : std::to_string(getuid());
}

}  // namespace

std::string Trimmed(std::string_view text) {
  const auto blank = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}

Status Properties::Add(std::string_view xml, std::string_view file) {
  const std::string where(file);
  if (xml.size() > kMaxBytes) {
    return InvalidArgument(where + " has " + std::to_string(xml.size()) + " bytes; the bound is " +
                           std::to_string(kMaxBytes));
  }
  const std::unique_ptr<XML_ParserStruct, void (*)(XML_Parser)> parser(XML_ParserCreate(nullptr),
                                                                       &XML_ParserFree);
  if (!parser) return ResourceExhausted("no memory to read " + where);
  Reader reader;
  reader.parser = parser.get();
  XML_SetUserData(parser.get(), &reader);
  XML_SetElementHandler(parser.get(), &StartElement, &EndElement);
  XML_SetCharacterDataHandler(parser.get(), &Characters);
  XML_SetStartDoctypeDeclHandler(parser.get(), &StartDoctype);
  if (XML_Parse(parser.get(), xml.data(), static_cast<int>(xml.size()), 1) != XML_STATUS_OK) {
    if (!reader.refusal.empty()) {
      return InvalidArgument(where + ":" + std::to_string(reader.line) + ": " + reader.refusal);
    }
    return InvalidArgument(
        where + ":" + std::to_string(XML_GetCurrentLineNumber(parser.get())) + ":" +
        std::to_string(XML_GetCurrentColumnNumber(parser.get()) + 1) +
        ": not well-formed XML: " + XML_ErrorString(XML_GetErrorCode(parser.get())));
  }
  for (Property& p : reader.found) {
    Value& slot = values_[p.name];
    if (!slot.is_final) slot = {std::move(p.value), p.is_final};
  }
  return Status::Ok();
}

void Properties::Set(std::string name, std::string value) {
  values_[std::move(name)] = {std::move(value), false};
}

std::optional<std::string> Properties::Variable(std::string_view name) const {
  if (name.substr(0, 4) == "env.") {  // ${env.NAME}, ${env.NAME:-otherwise}, ${env.NAME-otherwise}
    const std::string_view rest = name.substr(4);
    const std::size_t dash = std::min(rest.find('-'), rest.size());
    const bool colon = dash > 0 && dash < rest.size() && rest[dash - 1] == ':';
    const char* value = std::getenv(std::string(rest.substr(0, dash - (colon ? 1 : 0))).c_str());
    if (value != nullptr && (*value != '\0' || !colon)) return value;
    if (dash < rest.size()) return std::string(rest.substr(dash + 1));
    return std::nullopt;
  }
  const auto it = values_.find(name);
  if (it != values_.end()) return it->second.text;
  if (name == "user.name") return UserName();
  return std::nullopt;
}

std::string Properties::Expand(std::string text) const {
  std::size_t from = 0;
  for (int i = 0; i < kMaxExpansions; ++i) {
    const std::size_t begin = text.find("${", from);
    if (begin == std::string::npos) break;
    const std::size_t end = text.find('}', begin);
    if (end == std::string::npos) break;
    // The innermost one first, so that a variable may be part of a variable's name.
    const std::size_t inner = text.rfind("${", end);
    const auto value = Variable(std::string_view(text).substr(inner + 2, end - inner - 2));
    if (!value) {
      from = end + 1;
      continue;
    }
    if (text.size() + value->size() > kMaxExpanded) break;
    text.replace(inner, end - inner + 1, *value);
  }
  return text;
}

std::optional<std::string> Properties::Get(std::string_view name) const {
  const auto it = values_.find(name);
  if (it == values_.end()) return std::nullopt;
  return Trimmed(Expand(it->second.text));
}

std::string Properties::Get(std::string_view name, std::string_view otherwise) const {
  return Get(name).value_or(std::string(otherwise));
}

bool Properties::GetBool(std::string_view name, bool otherwise) const {
  std::string value = Get(name, "");
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (value == "true") return true;
  return value == "false" ? false : otherwise;
}

}  // namespace arcflow::hdfs
