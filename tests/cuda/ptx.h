// As much of a PTX text as the driver looks at: version, target, entries and their parameters.
#pragma once

#include <cctype>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "errors.h"

struct Entry {
    std::vector<size_t> parameters; // bytes of each
    unsigned threads = 1024;        // most threads of a block
};

class Ptx {
public:
    std::map<std::string, Entry> entries;

    // `driver` is the version as cuDriverGetVersion gives it, `capability` major * 10 + minor.
    int load(const char* image, int driver, int capability) {
        text = uncommented(image);
        size_t at = 0;
        if (word(at) != ".version") return INVALID_IMAGE;
        if (number(word(at)) > newest(driver)) return UNSUPPORTED_PTX_VERSION;
        std::string target = word(at) == ".target" ? word(at) : "";
        if (target.compare(0, 3, "sm_") != 0) return INVALID_PTX;
        int needed = std::atoi(target.c_str() + 3);
        bool only = target.back() == 'a'; // features of one architecture: no other runs them
        if (needed > capability || (only && needed != capability)) return NO_BINARY_FOR_GPU;
        if (word(at) != ".address_size" || word(at) != "64") return INVALID_PTX;
        while ((at = text.find(".entry", at)) != std::string::npos) {
            at += 6;
            if (!entry(at)) return INVALID_PTX;
        }
        return SUCCESS;
    }

private:
    std::string text;

    // The newest PTX a driver of this version translates, times ten.
    static int newest(int driver) {
        static const int table[][2] = {
            {11000, 70}, {11010, 71}, {11020, 72}, {11030, 73}, {11040, 74}, {11050, 75}, {11060, 76},
            {11070, 77}, {11080, 78}, {12000, 80}, {12010, 81}, {12020, 82}, {12030, 83}, {12040, 84},
            {12050, 85}, {12060, 85}, {12080, 87}, {12090, 88}, {13000, 90}};
        int found = 0;
        for (auto& row : table) {
            if (driver >= row[0]) found = row[1];
        }
        return found;
    }

    static int number(const std::string& version) {
        char* end = nullptr;
        long major = std::strtol(version.c_str(), &end, 10);
        long minor = *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
        return int(major * 10 + minor);
    }

    static std::string uncommented(const std::string& source) {
        std::string out;
        for (size_t i = 0; i < source.size();) {
            bool line = source.compare(i, 2, "//") == 0, block = source.compare(i, 2, "/*") == 0;
            if (line || block) {
                size_t end = source.find(line ? "\n" : "*/", i + 2);
                i = end == std::string::npos ? source.size() : end + (line ? 0 : 2);
                out += ' ';
            } else {
                out += source[i++];
            }
        }
        return out;
    }

    std::string word(size_t& at) const {
        auto blank = [&](char c) { return std::isspace((unsigned char)c) || c == ','; };
        while (at < text.size() && blank(text[at])) at++;
        size_t start = at;
        while (at < text.size() && !blank(text[at])) at++;
        return text.substr(start, at - start);
    }

    static size_t width(const std::string& type) {
        size_t digits = type.find_first_of("0123456789");
        return digits == std::string::npos ? 0 : std::strtoul(type.c_str() + digits, nullptr, 10) / 8;
    }

    // NAME( .param [.align N] .TYPE [.ptr ...] NAME[[BYTES]], ... ) [.maxntid N]
    bool entry(size_t& at) {
        size_t open = text.find('(', at), close = text.find(')', at);
        if (open == std::string::npos || close == std::string::npos || close < open) return false;
        size_t start = at;
        std::string name = word(start);
        name = name.substr(0, name.find('('));
        Entry found;
        for (size_t p = text.find(".param", open); p < close; p = text.find(".param", p)) {
            p += 6;
            std::string type = word(p);
            if (type == ".align") word(p), type = word(p);
            size_t stop = text.find_first_of(",)", p), bracket = text.find('[', p);
            size_t count = 1;
            if (bracket < stop) count = std::strtoul(text.c_str() + bracket + 1, nullptr, 10);
            if (width(type) == 0 || count == 0) return false;
            found.parameters.push_back(width(type) * count);
        }
        size_t body = text.find('{', close), limit = text.find(".maxntid", close);
        if (limit < body) found.threads = unsigned(std::atoi(text.c_str() + limit + 8));
        entries[name] = found;
        at = close;
        return true;
    }
};
