/* asset.h: files of the source tree that are part of a program.
 *
 *     ASSET(serve_page, "infer/serve.html");      // const char serve_page[], with a NUL behind it
 *
 * The path is from the top of the tree.  make does not see that the object depends on it: say so in mk/.
 */
#ifndef LIB_ASSET_H
#define LIB_ASSET_H

#define ASSET(name, file)     \
    extern const char name[]; \
    __asm__(".pushsection .rodata\n.globl " #name "\n" #name ":\n.incbin \"" file "\"\n.byte 0\n.popsection\n")

#endif
