// A libcuda.so.1 of a broken installation: it starts, and then most of it is missing.

extern "C" int cuInit(unsigned) { return 0; }

extern "C" int cuDriverGetVersion(int* version) {
    *version = 12000;
    return 0;
}
