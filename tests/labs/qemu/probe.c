/* A process of the lab's guest that says what it does, so that tests can compare it with what vmtree tells of it.
 *
 * Without a C library: cc -static -nostdlib -O1 probe.c
 */
#define PAGE 0x123456789000UL
#define TOUCHED (PAGE + 0xabc)

enum { READ, WRITE, OPEN, LSEEK = 8, MMAP, PREAD64 = 17, GETPID = 39 };

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
}

/* A line of a word and a number, written at once. */
static void say(const char *what, unsigned long value) {
    char line[64];
    int len = 0;
    while (*what) line[len++] = *what++;
    for (int shift = 60; shift >= 0; shift -= 4) line[len++] = "0123456789abcdef"[value >> shift & 15];
    line[len++] = '\n';
    call(WRITE, 1, (long)line, len, 0, 0, 0);
}

/* The one instruction that touches the page first. */
__attribute__((noinline)) static void touch(void) {
    __asm__ volatile(".globl touching\ntouching: movb $0x56, (%0)" : : "r"(TOUCHED) : "memory");
}
extern const char touching[];

__attribute__((noreturn)) static void run(void) {
    /* Readable and writable; private, anonymous and right there. */
    call(MMAP, PAGE, 4096, 3, 0x32, -1, 0);
    say("probe touches 0x", TOUCHED);
    say("probe touches it at 0x", (unsigned long)touching);
    touch();
    /* The rest of the text comes here only, a letter from each of two strings: it lies in no other page. */
    volatile char *at = (volatile char *)TOUCHED;
    for (int letter = 0; letter < 6; letter++) {
        at[2 * letter] = "Vte rb"[letter];
        at[2 * letter + 1] = "mrepoe"[letter];
    }
    /* The kernel's own word on which frame it is: bits 0 to 54 of the page's entry. */
    unsigned long entry = 0;
    long map = call(OPEN, (long)"/proc/self/pagemap", 0, 0, 0, 0, 0);
    call(PREAD64, map, (long)&entry, 8, PAGE / 4096 * 8, 0, 0);
    say("probe has gpa 0x", (entry & 0x7fffffffffffffUL) << 12);
    for (;;) {
        call(GETPID, 0x111, 0x222, 0x333, 0, 0, 0);
        /* No such file is open: nothing happens. */
        call(LSEEK, 0x7ffffff1, 0xabcdef, 0x42, 0, 0, 0);
        for (volatile int spin = 0; spin < 200000; spin++) {}
    }
}

__asm__(".globl _start\n_start: and $-16, %rsp\ncall start\n");
void start(void) { run(); }
