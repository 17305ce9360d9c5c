/* Vectors made with Hugging Face's tokenizers: tests/golden/tokenizer/make.py. */
#include "tests/unit/testutil.h"

#include <pthread.h>
#include <stdio.h>

#include "lib/json.h"
#include "lib/log.h"
#include "lib/prompt.h"
#include "lib/tokenizer.h"

#define GOLDEN "tests/golden/tokenizer/"

static struct tok *load(const char *path)
{
    struct tok *t;
    if (tok_load(path, &t) < 0)
        fail_msg("%s", err_text());
    return t;
}

static void check_vectors(const struct tok *t, const char *path, size_t at_least)
{
    json_t *rows, *row, *id;
    size_t i, k;
    if (json_read_file(path, 1 << 26, &rows) < 0)
        fail_msg("%s", err_text());
    assert_true(json_array_size(rows) >= at_least);
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text"), *want = json_object_get(row, "ids");
        const json_t *decoded = json_object_get(row, "decoded");
        struct tok_ids ids = {0};
        struct buf whole = BUF_INIT, pieces = BUF_INIT;
        struct tok_stream s = {0};
        assert_int_equal(tok_encode(t, json_string_value(text), json_string_length(text), true, &ids), ERR_OK);
        if (ids.n != json_array_size(want))
            fail_msg("%s: text %zu: %zu ids, %zu are due", path, i, ids.n, json_array_size(want));
        json_array_foreach((json_t *)want, k, id)
            if (ids.v[k] != json_integer_value(id))
                fail_msg("%s: text %zu, token %zu: %d, %lld is due", path, i, k, ids.v[k],
                         (long long)json_integer_value(id));
        assert_int_equal(tok_decode(t, ids.v, ids.n, false, &whole), ERR_OK);
        assert_int_equal(whole.n, json_string_length(decoded));
        assert_memory_equal(whole.s, json_string_value(decoded), whole.n);
        for (k = 0; k < ids.n; k++) {
            assert_int_equal(tok_stream_push(t, &s, ids.v[k], false, &pieces), ERR_OK);
            assert_true(s.n_pending < 4);
        }
        tok_stream_end(&s, &pieces);
        assert_string_equal(pieces.s, whole.s);
        tok_ids_release(&ids);
        buf_release(&whole);
        buf_release(&pieces);
    }
    json_decref(rows);
}

static void small_tokenizers_give_the_reference_ids_and_text(void **state)
{
    (void)state;
    static const char *const names[] = {"small-qwen", "small-llama"};
    for (size_t i = 0; i < 2; i++) {
        char file[200], vectors[200];
        snprintf(file, sizeof file, GOLDEN "%s.json", names[i]);
        snprintf(vectors, sizeof vectors, GOLDEN "%s.vectors.json", names[i]);
        struct tok *t = load(file);
        check_vectors(t, vectors, 150);
        tok_free(t);
    }
}

static void real_tokenizers_give_the_reference_ids_and_text(void **state)
{
    (void)state;
    const char *shared = getenv("SHARED") ? getenv("SHARED") : "../shared";
    static const char *const names[] = {"qwen2.5", "llama3.2"};
    static const int32_t eos[] = {151645, 128009}, bos[] = {-1, 128000};
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizers", shared);
    if (!path_is_dir(path)) {
        printf("SKIP: %s is absent\n", path);
        skip();
    }
    for (size_t i = 0; i < 2; i++) {
        char vectors[200];
        snprintf(path, sizeof path, "%s/tokenizers/%s", shared, names[i]);
        snprintf(vectors, sizeof vectors, GOLDEN "%s.vectors.json", names[i]);
        struct tok *t = load(path);
        assert_int_equal(tok_eos(t), eos[i]);
        assert_int_equal(tok_bos(t), bos[i]);
        assert_true(tok_is_stop(t, eos[i]));
        assert_false(tok_is_stop(t, 5));
        check_vectors(t, vectors, 130);
        tok_free(t);
    }
}

static void ill_formed_text_is_read_as_replacement_characters(void **state)
{
    (void)state;
    struct tok *t = load(GOLDEN "small-qwen.json");
    static const struct {
        const char *bytes, *same;
    } cases[] = {
        {"a\xff" "b", "a\xef\xbf\xbd" "b"},
        {"\xc3", "\xef\xbf\xbd"},
        {"x\xe2\x82y", "x\xef\xbf\xbdy"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf0\x9f\x94", "\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tok_ids a = {0}, b = {0};
        assert_int_equal(tok_encode(t, cases[i].bytes, strlen(cases[i].bytes), true, &a), ERR_OK);
        assert_int_equal(tok_encode(t, cases[i].same, strlen(cases[i].same), true, &b), ERR_OK);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.v, b.v, a.n * sizeof *a.v);
        tok_ids_release(&a);
        tok_ids_release(&b);
    }
    tok_free(t);
}

static void the_mark_falls_on_the_first_token_at_or_after_it(void **state)
{
    (void)state;
    struct tok *t = load(GOLDEN "small-llama.json");
    static const char *const heads[] = {"", "plain\n", "caf\xc3\xa9 <tool> \xe4\xb8\xad\n", "e\xcc\x81 \xff\n", "<|end|>\n"};
    static const char *const tails[] = {"ISO-10303-21;\n", "\nDATA;", "  #1=A();", "<tool>x", "\xcc\x81z", ""};
    for (size_t h = 0; h < ARRAY_LEN(heads); h++)
        for (size_t i = 0; i < ARRAY_LEN(tails); i++) {
            struct buf b = BUF_INIT, head = BUF_INIT;
            struct tok_ids whole = {0}, ids = {0};
            size_t first, mark = strlen(heads[h]), n = 0;
            buf_printf(&b, "%s%s", heads[h], tails[i]);
            assert_int_equal(tok_encode(t, b.s, b.n, true, &whole), ERR_OK);
            assert_int_equal(tok_encode_mark(t, b.s, b.n, true, mark, &ids, &first), ERR_OK);
            assert_int_equal(ids.n, whole.n); /* the mark changes nothing */
            assert_memory_equal(ids.v, whole.v, ids.n * sizeof *ids.v);
            assert_true(first >= 1 && first <= ids.n);
            /* What is ahead of it covers the head, and less one token does not. */
            struct tok_ids alone = {0};
            assert_int_equal(tok_encode(t, heads[h], mark, false, &alone), ERR_OK);
            assert_int_equal(tok_decode(t, alone.v, alone.n, false, &head), ERR_OK);
            for (size_t k = 1; k < first; k++) {
                assert_true(n < head.n);
                size_t len;
                tok_bytes(t, ids.v[k], &len);
                n += len;
            }
            assert_true(n >= head.n);
            tok_ids_release(&alone);
            tok_ids_release(&whole);
            tok_ids_release(&ids);
            buf_release(&b);
            buf_release(&head);
        }
    tok_free(t);
}

static void a_training_text_is_prompt_then_response_then_eos(void **state)
{
    struct file_map m;
    assert_int_equal(file_map(GOLDEN "small-llama.json", 0, &m), ERR_OK);
    assert_int_equal(file_write(in_dir(state, "tokenizer.json"), m.data, m.size, false), ERR_OK);
    file_unmap(&m);
    const char *config = "{\"eos_token\":{\"content\":\"<|end|>\"},\"bos_token\":\"<|begin|>\"}";
    assert_int_equal(file_write(in_dir(state, "tokenizer_config.json"), config, strlen(config), false), ERR_OK);
    struct tok *t = load(*state);
    assert_int_equal(tok_eos(t), tok_find(t, "<|end|>"));
    assert_true(tok_is_special(t, tok_eos(t)));
    /* A marker spelt in the caption is part of the caption. */
    const char *caption = "A flange.\n\n### output:\nnot this", *output = "ISO-10303-21;\nDATA;\n";
    for (int rag = 0; rag < 2; rag++) {
        struct tok_ids prompt = {0}, all = {0};
        struct buf text = BUF_INIT;
        size_t response;
        assert_int_equal(prompt_encode(t, caption, rag ? "#1=A();" : NULL, &prompt), ERR_OK);
        assert_int_equal(prompt_encode_training(t, caption, rag ? "#1=A();" : NULL, output, &all, &response), ERR_OK);
        assert_int_equal(response, prompt.n);
        assert_memory_equal(all.v, prompt.v, prompt.n * sizeof *all.v);
        assert_int_equal(all.v[0], tok_find(t, "<|begin|>"));
        assert_int_equal(all.v[all.n - 1], tok_eos(t));
        assert_int_equal(tok_decode(t, all.v + response, all.n - response, true, &text), ERR_OK);
        assert_string_equal(text.s, output);
        buf_clear(&text);
        assert_int_equal(tok_decode(t, prompt.v, prompt.n, true, &text), ERR_OK);
        assert_string_equal(text.s, rag
            ? "You are a CAD model generation assistant trained to produce STEP (.step) files based on textual "
              "descriptions. Given the following object description and relevant retrieved CAD data, generate a STEP "
              "file that accurately represents the described object.\n\n\n### caption:\nA flange.\n\n### output:\nnot this"
              "\n\n### retrieved relevant step file:\n#1=A();\n\n### output:\n"
            : "You are a CAD model generation assistant trained to produce STEP (.step) files based on textual "
              "descriptions. Given the following object description, generate a STEP file that accurately represents "
              "the described object.\n\n### caption:\nA flange.\n\n### output:\nnot this\n\n### output:\n");
        buf_release(&text);
        tok_ids_release(&prompt);
        tok_ids_release(&all);
    }
    tok_free(t);
}

static void stop_tokens_come_from_the_model_configs(void **state)
{
    struct file_map m;
    assert_int_equal(file_map(GOLDEN "small-qwen.json", 0, &m), ERR_OK);
    assert_int_equal(file_write(in_dir(state, "tokenizer.json"), m.data, m.size, false), ERR_OK);
    file_unmap(&m);
    const char *generation = "{\"eos_token_id\":[7,9,99999999],\"bos_token_id\":3,\"pad_token_id\":4}";
    const char *config = "{\"eos_token_id\":11}";
    file_write(in_dir(state, "generation_config.json"), generation, strlen(generation), false);
    file_write(in_dir(state, "config.json"), config, strlen(config), false);
    struct tok *t = load(*state);
    assert_int_equal(tok_eos(t), 7);
    assert_int_equal(tok_bos(t), 3);
    assert_int_equal(tok_pad(t), 4);
    assert_true(tok_is_stop(t, 7) && tok_is_stop(t, 9) && tok_is_stop(t, 11));
    assert_false(tok_is_stop(t, 3));
    tok_free(t);
    file_write(in_dir(state, "config.json"), "{", 1, false);
    assert_int_equal(tok_load(*state, &t), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "config.json"));
}

/* Bytes a second, the best of three. */
static double speed(const struct tok *t, const char *text, size_t n)
{
    double best = 0;
    for (int i = 0; i < 3; i++) {
        struct tok_ids ids = {0};
        double start = now_s();
        assert_int_equal(tok_encode(t, text, n, true, &ids), ERR_OK);
        double s = (double)n / (now_s() - start + 1e-9);
        best = s > best ? s : best;
        tok_ids_release(&ids);
    }
    return best;
}

static void hostile_texts_take_linear_time(void **state)
{
    (void)state;
    struct tok *t = load(GOLDEN "small-qwen.json");
    /* one endless word, run of spaces, of marks (in falling classes), of openings of added tokens */
    static const char *const units[] = {"ab", " ", "\xcd\x85\xcc\xb4\xcc\x81", "<tool", "\xf0\x9f\x94\xa7", "'", "\n "};
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        struct buf b = BUF_INIT;
        size_t small = 20000, large = 640000;
        while (b.n < large)
            buf_puts(&b, units[i]);
        double at_small = speed(t, b.s, small - small % strlen(units[i])), at_large = speed(t, b.s, b.n);
        if (at_large < at_small / 8) /* quadratic would be 32 times slower */
            fail_msg("unit %zu: %.3g bytes/s in 20 kB, %.3g in 640 kB", i, at_small, at_large);
        buf_release(&b);
    }
    tok_free(t);
}

static void *encode_again_and_again(void *arg)
{
    const struct tok *t = arg;
    const char *text = "#10=CARTESIAN_POINT('',(1.5,-0.25,3.E-05)); caf\xc3\xa9 e\xcc\x81 plate";
    struct tok_ids first = {0}, ids = {0};
    intptr_t same = tok_encode(t, text, strlen(text), true, &first) == ERR_OK;
    for (int i = 0; i < 300 && same; i++) {
        ids.n = 0;
        same = tok_encode(t, text, strlen(text), true, &ids) == ERR_OK && ids.n == first.n &&
               !memcmp(ids.v, first.v, ids.n * sizeof *ids.v);
    }
    tok_ids_release(&first);
    tok_ids_release(&ids);
    return (void *)same;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    struct tok *t = load(GOLDEN "small-qwen.json");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_again_and_again, t), 0);
    for (int i = 0; i < 4; i++) {
        void *same;
        pthread_join(threads[i], &same);
        assert_non_null(same);
    }
    tok_free(t);
}

static void decoding_an_unknown_id_is_an_error(void **state)
{
    (void)state;
    struct tok *t = load(GOLDEN "small-qwen.json");
    struct buf b = BUF_INIT;
    int32_t ids[] = {-1, tok_n_ids(t)};
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(tok_decode(t, &ids[i], 1, false, &b), ERR_FORMAT);
    buf_release(&b);
    tok_free(t);
}

static void bad_files_are_refused_with_a_reason(void **state)
{
    static const struct {
        const char *json, *says;
    } cases[] = {
        {"", ""},
        {"{}", "no model"},
        {"[]", "no model"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "WordPiece"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]}}", "vocab"},
        {"{\"model\":{\"vocab\":[1],\"merges\":[]}}", "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "bad id"},
        {"{\"model\":{\"vocab\":{\"a\":2000000000},\"merges\":[]}}", "bad id"},
        {"{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", "one id"},
        {"{\"model\":{\"vocab\":{\"a\":0}}}", "merges"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "merges[0]"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]}}", "lacks"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "merges[0]"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", "ByteLevel"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Lowercase\"}}", "Lowercase"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":1}]}", "added_tokens[0]"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":0,\"content\":\"b\"}]}", "has the id"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":"
         "{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}}", "pattern"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "Metaspace"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},"
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}}", "single[0]"},
    };
    const char *path = in_dir(state, "tokenizer.json");
    struct tok *t;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        file_write(path, cases[i].json, strlen(cases[i].json), false);
        if (tok_load(*state, &t) != ERR_FORMAT || t || !strstr(err_text(), cases[i].says) ||
            !strstr(err_text(), "tokenizer.json"))
            fail_msg("case %zu: %s", i, err_text());
    }
    /* A byte without a token is told when it is met, not dropped. */
    const char *lacks = "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\","
                        "\"add_prefix_space\":false}}";
    file_write(path, lacks, strlen(lacks), false);
    struct tok_ids ids = {0};
    t = load(path);
    assert_int_equal(tok_encode(t, "aa", 2, true, &ids), ERR_OK);
    assert_int_equal(ids.n, 2);
    assert_int_equal(tok_encode(t, "ab", 2, true, &ids), ERR_FORMAT);
    assert_int_equal(ids.n, 2);
    assert_non_null(strstr(err_text(), "0x62"));
    tok_ids_release(&ids);
    tok_free(t);
    assert_int_equal(tok_load(in_dir(state, "none"), &t), ERR_IO);
    assert_int_equal(tok_load(GOLDEN, &t), ERR_IO);
}

static void a_file_cut_or_damaged_anywhere_never_crashes(void **state)
{
    struct file_map m;
    struct tok *t;
    assert_int_equal(file_map(GOLDEN "small-llama.json", 0, &m), ERR_OK);
    char *copy = xmalloc(m.size);
    const char *path = in_dir(state, "tokenizer.json"), *text = "#1=A('caf\xc3\xa9 plate',(1.5,2.));";
    for (size_t n = 0; n < m.size; n += 1 + m.size / 60) {
        assert_int_equal(file_write(path, m.data, n, false), ERR_OK);
        assert_int_equal(tok_load(path, &t), ERR_FORMAT);
    }
    uint64_t r = 1;
    for (int i = 0; i < 150; i++) {
        memcpy(copy, m.data, m.size);
        for (int k = 0; k < 3; k++) {
            r = r * 6364136223846793005u + 1442695040888963407u;
            copy[(r >> 20) % m.size] = "\"{}[]:,0Z\\ \xff"[(r >> 10) % 12];
        }
        assert_int_equal(file_write(path, copy, m.size, false), ERR_OK);
        if (tok_load(path, &t) == ERR_OK) {
            struct tok_ids ids = {0};
            tok_encode(t, text, strlen(text), true, &ids);
            tok_ids_release(&ids);
        }
        tok_free(t);
    }
    free(copy);
    file_unmap(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_tokenizers_give_the_reference_ids_and_text),
        cmocka_unit_test(real_tokenizers_give_the_reference_ids_and_text),
        cmocka_unit_test(ill_formed_text_is_read_as_replacement_characters),
        cmocka_unit_test(the_mark_falls_on_the_first_token_at_or_after_it),
        TEST_IN_DIR(a_training_text_is_prompt_then_response_then_eos),
        TEST_IN_DIR(stop_tokens_come_from_the_model_configs),
        cmocka_unit_test(hostile_texts_take_linear_time),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(decoding_an_unknown_id_is_an_error),
        TEST_IN_DIR(bad_files_are_refused_with_a_reason),
        TEST_IN_DIR(a_file_cut_or_damaged_anywhere_never_crashes),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
