/* tokenizer-train: a byte-level BPE tokenizer for STEP text and captions.
 *
 * Sennrich, Haddow, Birch (ACL 2016): the most frequent pair of neighbouring symbols becomes a
 * symbol, until the vocabulary is full.  Pairs of equal count go by their ids, so the same
 * text gives the same tokenizer. */
#include <stdlib.h>

#include "lib/csv.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/tokenizer.h"
#include "lib/tool.h"

static const char *out, *pattern = "step", *end_token = "<|endoftext|>";
static int64_t vocab_size = 1024, min_count = 2;
static struct opt_list captions;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "DIR",
     .help = "folder for tokenizer.json and tokenizer_config.json", .flags = OPT_REQUIRED},
    {.name = "vocab-size", .type = OPT_INT, .value = &vocab_size, .arg = "N",
     .help = "tokens in all: the end token, 256 bytes, merges", .min = 258, .max = 1 << 20},
    {.name = "captions", .type = OPT_LIST, .value = &captions, .arg = "CSV",
     .help = "captions to train on as well (column description); may be repeated"},
    {.name = "pattern", .type = OPT_STR, .value = &pattern, .arg = "KIND", .choices = "step|lean|qwen",
     .help = "step: what stands between digits, as =CARTESIAN_POINT('',( does, may become one token; lean: and #1, 0. and "
             "1. in it, for the compact form; qwen: as Qwen2.5 (words and punctuation apart); other digits are single"},
    {.name = "min-count", .type = OPT_INT, .value = &min_count, .arg = "N",
     .help = "a pair that occurs less often is not merged", .min = 1, .max = 1e12},
    {.name = "end-token", .type = OPT_STR, .value = &end_token, .arg = "TEXT", .help = "the EOS and padding token"},
    {0},
};

static const struct tool_spec spec = {
    .name = "tokenizer-train",
    .args = "IN... --out DIR",
    .summary = "Makes a byte-level BPE tokenizer from STEP files, pair records and captions.",
    .details = "IN: STEP files, folders of them, pair records (.json).  Captions and pair records are counted in\n"
               "the prompt that training puts them in.  Hugging Face's libraries load the result.\n\n"
               "  tokenizer-train data/step --captions captions.csv --out models/demo --vocab-size 1024\n",
    .options = options,
    .min_args = 1,
    .max_args = SIZE_MAX,
};

enum { WORD_MAX = 512 /* bytes; a longer word counts as several */ };

/* A capitalised or lower-case word with its space; else everything up to a digit, a space or such a word. */
static const char step_pattern[] = "\\p{N}| ?\\p{Lu}?\\p{Ll}+| ?[^\\s\\p{N}\\p{Ll}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/* The same, but a number of one digit that needs no arithmetic, a reference (#1) or 0. or 1. alone, is taken like a
 * letter: in the compact form most are, and ,#4,#1,.T.); becomes one token. */
static const char lean_pattern[] = " ?\\p{Lu}?\\p{Ll}+| ?(?:[^\\s\\p{N}\\p{Ll}]|(?<=#)\\p{N}(?!\\p{N})|(?<![\\p{N}.])[01]\\.(?!\\p{N}))+"
                                   "[\\r\\n]*|\\p{N}|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char qwen_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+"
                                   "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct word {
    uint64_t hash;
    int64_t count;
    uint32_t at, n; /* symbols */
};

struct pair_count {
    uint64_t pair; /* left << 32 | right; NO_PAIR: free */
    int64_t count;
    uint32_t *words; /* that hold it, or did */
    uint32_t n, cap;
};
#define NO_PAIR UINT64_MAX

struct candidate {
    int64_t count;
    uint64_t pair;
};

struct trainer {
    struct tool *tool;
    struct tok *splitter;
    struct word *words;
    size_t n_words, cap_words;
    uint32_t *slots; /* word + 1 by hash */
    size_t n_slots;
    int32_t *symbols;
    size_t n_symbols, cap_symbols;
    struct pair_count *pairs;
    size_t n_pairs, n_pair_slots;
    struct candidate *heap;
    size_t n_heap, cap_heap;
    struct buf *tokens; /* bytes of each id */
    int64_t n_tokens;
    uint32_t *by_bytes;  /* token + 1 by hash */
    size_t n_by_bytes;
    struct buf spelt_merges; /* the merges as JSON strings, in order */
    uint64_t bytes;
};

/* ---- counting words ---- */

static void rehash_words(struct trainer *t)
{
    free(t->slots);
    t->n_slots = t->n_slots ? t->n_slots * 2 : 1 << 16;
    t->slots = xcalloc(t->n_slots, sizeof *t->slots);
    for (size_t i = 0; i < t->n_words; i++) {
        size_t k = t->words[i].hash & (t->n_slots - 1);
        while (t->slots[k])
            k = (k + 1) & (t->n_slots - 1);
        t->slots[k] = (uint32_t)i + 1;
    }
}

/* Ids of the bytes: behind the end token, in the order of the alphabet's characters, as Hugging Face has them. */
static int32_t byte_ids[256];

static int by_spelling(const void *a, const void *b)
{
    return strcmp(((const struct buf *)a)->s, ((const struct buf *)b)->s);
}

static void make_byte_ids(struct trainer *t)
{
    struct buf spelt[256];
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        buf_init(&spelt[b]);
        tok_spell(&c, 1, &spelt[b]);
        buf_putc(&spelt[b], 0); /* behind the NUL: which byte it is */
        buf_putc(&spelt[b], c);
    }
    qsort(spelt, 256, sizeof *spelt, by_spelling); /* of UTF-8: by code point */
    buf_puts(&t->tokens[0], end_token);
    for (int i = 0; i < 256; i++) {
        char c = spelt[i].s[spelt[i].n - 1];
        byte_ids[(unsigned char)c] = i + 1;
        buf_putc(&t->tokens[i + 1], c);
        buf_release(&spelt[i]);
    }
    t->n_tokens = 257;
}

static void add_word(void *ctx, const char *p, size_t n)
{
    struct trainer *t = ctx;
    for (; n > WORD_MAX; p += WORD_MAX, n -= WORD_MAX)
        add_word(t, p, WORD_MAX);
    if (n < 2) /* nothing to merge */
        return;
    if (t->n_words * 2 >= t->n_slots)
        rehash_words(t);
    uint64_t h = fnv1a(FNV_INIT, p, n);
    size_t k = h & (t->n_slots - 1);
    for (; t->slots[k]; k = (k + 1) & (t->n_slots - 1)) {
        struct word *w = &t->words[t->slots[k] - 1];
        bool same = w->hash == h && w->n == n;
        for (size_t i = 0; same && i < n; i++)
            same = t->symbols[w->at + i] == byte_ids[(unsigned char)p[i]];
        if (same) {
            w->count++;
            return;
        }
    }
    ARRAY_GROW(t->words, t->cap_words, t->n_words + 1);
    ARRAY_GROW(t->symbols, t->cap_symbols, t->n_symbols + n);
    t->words[t->n_words++] = (struct word){h, 1, (uint32_t)t->n_symbols, (uint32_t)n};
    t->slots[k] = (uint32_t)t->n_words;
    for (size_t i = 0; i < n; i++)
        t->symbols[t->n_symbols++] = byte_ids[(unsigned char)p[i]];
}

static int add_text(struct trainer *t, const char *s, size_t n)
{
    if (t->n_symbols + n > UINT32_MAX / 2)
        return err_set(ERR_NOMEM, "too much text: over 2 GB of distinct words");
    t->bytes += n;
    return tok_words(t->splitter, s, n, add_word, t);
}

static int add_prompt(struct trainer *t, const char *caption, const char *retrieved, const char *output)
{
    struct buf b = BUF_INIT;
    prompt_text(caption, retrieved, &b);
    buf_puts(&b, output);
    int rc = add_text(t, b.s, b.n);
    buf_release(&b);
    return rc;
}

static int add_pairs(struct trainer *t, const char *path)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(path, &r);
    if (rc < 0)
        return rc;
    while ((rc = pairs_next(r, &p)) > 0)
        if ((rc = add_prompt(t, p.caption, p.retrieved, p.output)) < 0)
            break;
    pairs_close(r);
    return rc;
}

static int add_captions(struct trainer *t, const char *path)
{
    struct csv *c;
    struct csv_row row;
    int rc = csv_open(path, &c), column;
    if (rc < 0)
        return rc;
    rc = column = csv_column(c, "description");
    while (rc >= 0 && (rc = csv_next(c, &row)) > 0)
        if (*row.field[column])
            rc = add_prompt(t, row.field[column], NULL, "");
    csv_close(c);
    return rc;
}

static int add_file(struct trainer *t, const char *path)
{
    struct file_map m;
    int rc = file_map(path, (size_t)2 << 30, &m);
    if (rc < 0)
        return rc;
    rc = add_text(t, m.data, m.size);
    file_unmap(&m);
    return rc;
}

static int read_all(struct trainer *t)
{
    struct tool *tool = t->tool;
    struct file_list files = {0};
    int rc = ERR_OK;
    for (size_t i = 0; i < tool->args.n && rc == ERR_OK; i++) {
        static const char *const suffixes[] = {".step", ".stp", ".json", NULL};
        size_t before = files.n;
        rc = file_list_add(&files, tool->args.v[i], path_is_dir(tool->args.v[i]) ? STEP_SUFFIXES : suffixes);
        if (rc == ERR_OK && files.n == before)
            rc = err_set(ERR_IO, "%s: holds no STEP file, and is no pair records (.json)", tool->args.v[i]);
    }
    progress_start("reading", files.n + captions.n, "files");
    for (size_t i = 0; i < files.n && rc == ERR_OK; i++) {
        rc = path_has_suffix(files.v[i].path, ".json") ? add_pairs(t, files.v[i].path) : add_file(t, files.v[i].path);
        progress_add(1, 0);
        if (rc == ERR_OK && stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped");
    }
    for (size_t i = 0; i < captions.n && rc == ERR_OK; i++) {
        rc = add_captions(t, captions.v[i]);
        progress_add(1, 0);
    }
    progress_end();
    file_list_release(&files);
    return rc;
}

/* ---- merging ---- */

static struct pair_count *find_pair(struct trainer *t, uint64_t pair)
{
    size_t k = (pair * 0x9e3779b97f4a7c15u) >> 20 & (t->n_pair_slots - 1);
    while (t->pairs[k].pair != NO_PAIR && t->pairs[k].pair != pair)
        k = (k + 1) & (t->n_pair_slots - 1);
    return &t->pairs[k];
}

static void grow_pairs(struct trainer *t)
{
    struct pair_count *old = t->pairs;
    size_t n = t->n_pair_slots;
    t->n_pair_slots = n ? n * 2 : 1 << 14;
    t->pairs = xmalloc(t->n_pair_slots * sizeof *t->pairs);
    for (size_t i = 0; i < t->n_pair_slots; i++)
        t->pairs[i] = (struct pair_count){.pair = NO_PAIR};
    for (size_t i = 0; i < n; i++)
        if (old[i].pair != NO_PAIR)
            *find_pair(t, old[i].pair) = old[i];
    free(old);
}

/* The token of these bytes, made if there is none: two pairs may give one text (ab+c, a+bc). */
static int32_t token_of(struct trainer *t, int32_t left, int32_t right)
{
    struct buf b = BUF_INIT;
    buf_add(&b, t->tokens[left].s, t->tokens[left].n);
    buf_add(&b, t->tokens[right].s, t->tokens[right].n);
    size_t k = fnv1a(FNV_INIT, b.s, b.n) & (t->n_by_bytes - 1);
    for (; t->by_bytes[k]; k = (k + 1) & (t->n_by_bytes - 1)) {
        int32_t id = (int32_t)t->by_bytes[k] - 1;
        if (t->tokens[id].n == b.n && !memcmp(t->tokens[id].s, b.s, b.n)) {
            buf_release(&b);
            return id;
        }
    }
    t->tokens[t->n_tokens] = b;
    t->by_bytes[k] = (uint32_t)++t->n_tokens;
    return (int32_t)t->n_tokens - 1;
}

static bool better(struct candidate a, struct candidate b)
{
    return a.count > b.count || (a.count == b.count && a.pair < b.pair);
}

static void push(struct trainer *t, struct candidate c)
{
    ARRAY_GROW(t->heap, t->cap_heap, t->n_heap + 1);
    size_t i = t->n_heap++;
    for (; i > 0 && better(c, t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
}

static struct candidate pop(struct trainer *t)
{
    struct candidate top = t->heap[0], x = t->heap[--t->n_heap];
    size_t i = 0;
    for (size_t c; (c = 2 * i + 1) < t->n_heap; i = c) {
        if (c + 1 < t->n_heap && better(t->heap[c + 1], t->heap[c]))
            c++;
        if (!better(t->heap[c], x))
            break;
        t->heap[i] = t->heap[c];
    }
    t->heap[i] = x;
    return top;
}

/* Adds sign x the word's count to all its pairs; with made >= 0 those of symbol made become candidates. */
static void count_pairs(struct trainer *t, uint32_t word, int sign, int32_t made)
{
    const struct word *w = &t->words[word];
    const int32_t *s = t->symbols + w->at;
    for (uint32_t i = 0; i + 1 < w->n; i++) {
        if (t->n_pairs * 2 >= t->n_pair_slots)
            grow_pairs(t);
        uint64_t pair = (uint64_t)(uint32_t)s[i] << 32 | (uint32_t)s[i + 1];
        struct pair_count *p = find_pair(t, pair);
        if (p->pair == NO_PAIR) {
            p->pair = pair;
            t->n_pairs++;
        }
        p->count += sign * w->count;
        if (sign > 0 && (!p->n || p->words[p->n - 1] != word)) {
            if (p->n == p->cap) {
                p->cap = p->cap ? p->cap * 2 : 4;
                p->words = xrealloc(p->words, p->cap * sizeof *p->words);
            }
            p->words[p->n++] = word;
        }
        if (sign > 0 && made >= 0 && (s[i] == made || s[i + 1] == made))
            push(t, (struct candidate){p->count, pair});
    }
}

static void merge_in_word(struct trainer *t, uint32_t word, int32_t left, int32_t right, int32_t made)
{
    struct word *w = &t->words[word];
    int32_t *s = t->symbols + w->at;
    uint32_t i = 0, m = 0;
    while (i + 1 < w->n && !(s[i] == left && s[i + 1] == right))
        i++;
    if (i + 1 >= w->n)
        return; /* it held the pair once */
    count_pairs(t, word, -1, -1);
    for (i = 0; i < w->n; m++) {
        bool here = i + 1 < w->n && s[i] == left && s[i + 1] == right;
        s[m] = here ? made : s[i];
        i += here ? 2 : 1;
    }
    w->n = m;
    count_pairs(t, word, 1, made);
}

static int learn(struct trainer *t)
{
    struct buf b = BUF_INIT;
    int rc = ERR_OK;
    grow_pairs(t);
    for (size_t i = 0; i < t->n_words; i++)
        count_pairs(t, (uint32_t)i, 1, -1);
    for (size_t i = 0; i < t->n_pair_slots; i++)
        if (t->pairs[i].pair != NO_PAIR)
            push(t, (struct candidate){t->pairs[i].count, t->pairs[i].pair});
    progress_start("merging", (uint64_t)(vocab_size - t->n_tokens), "merges");
    while (t->n_tokens < vocab_size && t->n_heap && rc == ERR_OK) {
        struct candidate c = pop(t);
        struct pair_count *p = find_pair(t, c.pair);
        if (p->count != c.count) { /* counts fell since: it comes again in its place */
            if (p->count > 0 && p->count < c.count)
                push(t, (struct candidate){p->count, c.pair});
            continue;
        }
        if (c.count < min_count)
            break;
        int32_t left = (int32_t)(c.pair >> 32), right = (int32_t)c.pair, made = token_of(t, left, right);
        buf_clear(&b);
        tok_spell(t->tokens[left].s, t->tokens[left].n, &b);
        buf_putc(&b, ' ');
        tok_spell(t->tokens[right].s, t->tokens[right].n, &b);
        buf_add(&t->spelt_merges, b.s, b.n + 1);
        /* Counting moves the table: take the list out of it first. */
        uint32_t *words = p->words, n = p->n;
        *p = (struct pair_count){.pair = c.pair, .count = p->count};
        for (uint32_t i = 0; i < n; i++)
            merge_in_word(t, words[i], left, right, made);
        free(words);
        progress_add(1, 0);
        if (stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped");
    }
    progress_end();
    buf_release(&b);
    return rc;
}

/* ---- tokenizer.json ---- */

static void put_byte_level(struct jw *j)
{
    jw_object(j);
    jw_kv_str(j, "type", "ByteLevel");
    jw_kv_bool(j, "add_prefix_space", false);
    jw_kv_bool(j, "trim_offsets", false);
    jw_kv_bool(j, "use_regex", false);
    jw_end(j);
}

static void put_tokenizer(const struct trainer *t, struct buf *b)
{
    struct jw j = JW_INIT(b);
    struct buf spelt = BUF_INIT;
    j.indent = 1;
    jw_object(&j);
    jw_kv_str(&j, "version", "1.0");
    jw_key(&j, "truncation"), jw_null(&j);
    jw_key(&j, "padding"), jw_null(&j);
    jw_key(&j, "added_tokens");
    jw_array(&j);
    jw_object(&j);
    jw_kv_int(&j, "id", 0);
    jw_kv_str(&j, "content", end_token);
    jw_kv_bool(&j, "single_word", false);
    jw_kv_bool(&j, "lstrip", false);
    jw_kv_bool(&j, "rstrip", false);
    jw_kv_bool(&j, "normalized", false);
    jw_kv_bool(&j, "special", true);
    jw_end(&j);
    jw_end(&j);
    jw_key(&j, "normalizer");
    jw_object(&j);
    jw_kv_str(&j, "type", "NFC");
    jw_end(&j);
    jw_key(&j, "pre_tokenizer");
    jw_object(&j);
    jw_kv_str(&j, "type", "Sequence");
    jw_key(&j, "pretokenizers");
    jw_array(&j);
    jw_object(&j);
    jw_kv_str(&j, "type", "Split");
    jw_key(&j, "pattern");
    jw_object(&j);
    jw_kv_str(&j, "Regex", !strcmp(pattern, "step") ? step_pattern : !strcmp(pattern, "lean") ? lean_pattern : qwen_pattern);
    jw_end(&j);
    jw_kv_str(&j, "behavior", "Isolated");
    jw_kv_bool(&j, "invert", false);
    jw_end(&j);
    put_byte_level(&j);
    jw_end(&j);
    jw_end(&j);
    jw_key(&j, "post_processor"), put_byte_level(&j);
    jw_key(&j, "decoder"), put_byte_level(&j);
    jw_key(&j, "model");
    jw_object(&j);
    jw_kv_str(&j, "type", "BPE");
    jw_key(&j, "dropout"), jw_null(&j);
    jw_key(&j, "unk_token"), jw_null(&j);
    jw_key(&j, "continuing_subword_prefix"), jw_null(&j);
    jw_key(&j, "end_of_word_suffix"), jw_null(&j);
    jw_kv_bool(&j, "fuse_unk", false);
    jw_kv_bool(&j, "byte_fallback", false);
    jw_kv_bool(&j, "ignore_merges", false);
    jw_key(&j, "vocab");
    jw_object(&j);
    jw_kv_int(&j, end_token, 0);
    for (int64_t i = 1; i < t->n_tokens; i++) {
        buf_clear(&spelt);
        tok_spell(t->tokens[i].s, t->tokens[i].n, &spelt);
        jw_kv_int(&j, spelt.s, i);
    }
    jw_end(&j);
    jw_key(&j, "merges");
    jw_array(&j);
    for (size_t i = 0; i < t->spelt_merges.n; i += strlen(t->spelt_merges.s + i) + 1)
        jw_str(&j, t->spelt_merges.s + i);
    jw_end(&j);
    jw_end(&j);
    jw_end(&j);
    buf_putc(b, '\n');
    buf_release(&spelt);
}

static int write_json(struct trainer *t)
{
    struct buf b = BUF_INIT;
    char *file = path_join(out, "tokenizer.json"), *config = path_join(out, "tokenizer_config.json");
    put_tokenizer(t, &b);
    int rc = file_write(file, b.s, b.n, true);
    buf_clear(&b);
    struct jw j = JW_INIT(&b);
    j.indent = 2;
    jw_object(&j);
    jw_kv_bool(&j, "add_bos_token", false);
    jw_kv_bool(&j, "add_prefix_space", false);
    jw_kv_bool(&j, "clean_up_tokenization_spaces", false);
    jw_kv_str(&j, "eos_token", end_token);
    jw_kv_str(&j, "pad_token", end_token);
    jw_kv_str(&j, "tokenizer_class", "PreTrainedTokenizerFast");
    jw_end(&j);
    buf_putc(&b, '\n');
    if (rc == ERR_OK)
        rc = file_write(config, b.s, b.n, true);
    if (rc == ERR_OK)
        rc = tool_artifact(t->tool, file, "tokenizer");
    buf_release(&b);
    free(config);
    free(file);
    return rc;
}

static int report(struct trainer *t)
{
    uint64_t tokens = 0, merged = 0;
    for (size_t i = 0; i < t->n_words; i++) {
        tokens += t->words[i].n * (uint64_t)t->words[i].count;
        for (uint32_t k = 0; k < t->words[i].n; k++)
            merged += t->tokens[t->symbols[t->words[i].at + k]].n * (uint64_t)t->words[i].count;
    }
    tokens += t->bytes > merged ? t->bytes - merged : 0; /* words of one byte: digits, mostly */
    double rate = tokens ? (double)t->bytes / (double)tokens : 0;
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_int(&j, "vocab", t->n_tokens);
    jw_kv_int(&j, "bytes", (int64_t)t->bytes);
    jw_kv_int(&j, "tokens", (int64_t)tokens);
    jw_kv_real(&j, "bytes_per_token", rate);
    jw_end(&j);
    tool_json_line(t->tool, b.s);
    buf_release(&b);
    tool_print(t->tool, "%lld tokens learnt from %llu bytes, which take %llu of them: %.2f bytes a token\n",
               (long long)t->n_tokens, (unsigned long long)t->bytes, (unsigned long long)tokens, rate);
    if (t->n_tokens < vocab_size)
        log_warn("%lld of %lld tokens: no other pair occurs %lld times", (long long)t->n_tokens, (long long)vocab_size,
                 (long long)min_count);
    return tool_metric(t->tool, 0, "bytes_per_token", rate);
}

static int run(struct trainer *t)
{
    if (!*end_token)
        return err_set(ERR_USAGE, "--end-token: may not be empty");
    t->tokens = xcalloc((size_t)vocab_size, sizeof *t->tokens);
    for (int64_t i = 0; i < vocab_size; i++)
        buf_init(&t->tokens[i]);
    for (t->n_by_bytes = 1024; t->n_by_bytes < 2 * (size_t)vocab_size;)
        t->n_by_bytes *= 2;
    t->by_bytes = xcalloc(t->n_by_bytes, sizeof *t->by_bytes);
    make_byte_ids(t);
    /* The words are cut by the very file that will be written, less its merges. */
    struct buf b = BUF_INIT;
    json_t *root = NULL;
    put_tokenizer(t, &b);
    int rc = json_read_mem("tokenizer.json", b.s, b.n, &root);
    if (rc == ERR_OK)
        rc = tok_load_json("tokenizer.json", root, &t->splitter);
    json_decref(root);
    buf_release(&b);
    if (rc == ERR_OK)
        rc = read_all(t);
    if (rc == ERR_OK && !t->bytes)
        rc = err_set(ERR_FORMAT, "%s: holds no text to learn from", t->tool->args.v[0]);
    if (rc == ERR_OK)
        rc = learn(t);
    if (rc == ERR_OK)
        rc = write_json(t);
    return rc < 0 ? rc : report(t);
}

int main(int argc, char **argv)
{
    struct tool tool;
    tool_start(&tool, &spec, argc, argv);
    struct trainer t = {.tool = &tool, .spelt_merges = BUF_INIT};
    int rc = tool_begin(&tool);
    if (rc == ERR_OK)
        rc = run(&t);
    for (int64_t i = 0; t.tokens && i < vocab_size; i++)
        buf_release(&t.tokens[i]);
    for (size_t i = 0; i < t.n_pair_slots; i++)
        free(t.pairs[i].words);
    tok_free(t.splitter);
    buf_release(&t.spelt_merges);
    free(t.tokens);
    free(t.by_bytes);
    free(t.words);
    free(t.slots);
    free(t.symbols);
    free(t.pairs);
    free(t.heap);
    return tool_finish(&tool, rc);
}
