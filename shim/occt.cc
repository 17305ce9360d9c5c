// Reading, meshing and checking STEP files with OpenCASCADE; see occt.h.
#include "shim/occt.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <istream>
#include <new>
#include <sstream>
#include <streambuf>
#include <string>
#include <vector>

#include <BRepBndLib.hxx>
#include <BRepCheck.hxx>
#include <BRepCheck_Analyzer.hxx>
#include <BRepCheck_ListIteratorOfListOfStatus.hxx>
#include <BRepGProp.hxx>
#include <BRepMesh_IncrementalMesh.hxx>
#include <BRep_Tool.hxx>
#include <Bnd_Box.hxx>
#include <GProp_GProps.hxx>
#include <Message.hxx>
#include <Message_Messenger.hxx>
#include <Message_Printer.hxx>
#include <Poly_PolygonOnTriangulation.hxx>
#include <Poly_Triangulation.hxx>
#include <STEPControl_Reader.hxx>
#include <ShapeAnalysis_ShapeTolerance.hxx>
#include <Standard_ErrorHandler.hxx>
#include <Standard_OutOfMemory.hxx>
#include <TopExp.hxx>
#include <TopExp_Explorer.hxx>
#include <TopTools_IndexedDataMapOfShapeListOfShape.hxx>
#include <TopTools_IndexedMapOfShape.hxx>
#include <TopoDS.hxx>
#include <TopoDS_Edge.hxx>
#include <TopoDS_Face.hxx>
#include <TopoDS_Shape.hxx>

extern "C" {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow" // file_map() and struct file_map are one name to C++
#include "lib/files.h"
#pragma GCC diagnostic pop
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/part.h"
}

namespace {

constexpr size_t kMessageBytes = 65536;
std::string messages;

// Keeps what the reader says, where OpenCASCADE's own printers write to standard output.
class Listener : public Message_Printer {
    DEFINE_STANDARD_RTTI_INLINE(Listener, Message_Printer)
protected:
    void send(const TCollection_AsciiString &text, const Message_Gravity gravity) const override
    {
        if (gravity < Message_Warning || messages.size() + text.Length() + 1 > kMessageBytes)
            return;
        messages.append(text.ToCString(), text.Length());
        if (messages.empty() || messages.back() != '\n')
            messages += '\n';
    }
};

// A text in memory as a stream, not copied.
class TextBuffer : public std::streambuf {
public:
    TextBuffer(const char *s, size_t n)
    {
        char *p = const_cast<char *>(s);
        setg(p, p, p + n);
    }

protected:
    pos_type seekoff(off_type off, std::ios_base::seekdir dir, std::ios_base::openmode) override
    {
        char *base = dir == std::ios_base::beg ? eback() : dir == std::ios_base::cur ? gptr() : egptr();
        if (base + off < eback() || base + off > egptr())
            return pos_type(off_type(-1));
        setg(eback(), base + off, egptr());
        return gptr() - eback();
    }
    pos_type seekpos(pos_type pos, std::ios_base::openmode which) override
    {
        return seekoff(off_type(pos), std::ios_base::beg, which);
    }
};

void set_text(char **s, const std::string &text)
{
    free(*s);
    *s = xstrndup(text.data(), text.size());
}

int fail(part *p, part_status status, const std::string &reason)
{
    p->status = status;
    set_text(&p->reason, reason);
    return ERR_OK;
}

// Type and message of a failure; the message of many is empty.
std::string failure_text(const Standard_Failure &e)
{
    const char *text = e.GetMessageString();
    std::string type = e.DynamicType()->Name();
    return text && *text ? type + ": " + text : type;
}

template <class T> T *copy_array(const std::vector<T> &v)
{
    T *p = static_cast<T *>(xmalloc(v.empty() ? 1 : v.size() * sizeof(T)));
    if (!v.empty())
        memcpy(p, v.data(), v.size() * sizeof(T));
    return p;
}

size_t count_triangles(const TopoDS_Shape &shape)
{
    size_t n = 0;
    TopLoc_Location loc;
    for (TopExp_Explorer ex(shape, TopAbs_FACE); ex.More(); ex.Next()) {
        Handle(Poly_Triangulation) t = BRep_Tool::Triangulation(TopoDS::Face(ex.Current()), loc);
        n += t.IsNull() ? 0 : size_t(t->NbTriangles());
    }
    return n;
}

double diagonal(const TopoDS_Shape &shape)
{
    Bnd_Box box;
    BRepBndLib::Add(shape, box, Standard_False);
    return box.IsVoid() || box.IsOpen() ? 0 : std::sqrt(box.SquareExtent());
}

void make_mesh(const TopoDS_Shape &shape, const part_request *q)
{
    double deflection = q->deflection > 0 ? q->deflection : 0.1;
    if (q->relative) {
        double d = diagonal(shape);
        deflection *= d > 0 && std::isfinite(d) ? d : 1;
    }
    BRepMesh_IncrementalMesh mesh(shape, deflection, Standard_False, q->angle > 0 ? q->angle : 0.5, Standard_False);
}

// Polylines of the edges, each once, by the triangulation of a face that has it.
void take_edges(const TopoDS_Shape &shape, part_mesh *m)
{
    std::vector<uint32_t> start(1, 0);
    std::vector<double> xyz;
    TopTools_IndexedDataMapOfShapeListOfShape faces;
    TopExp::MapShapesAndAncestors(shape, TopAbs_EDGE, TopAbs_FACE, faces);
    for (int i = 1; i <= faces.Extent(); i++) {
        const TopoDS_Edge &edge = TopoDS::Edge(faces.FindKey(i));
        // The seam of a cylinder is on one face twice, and no edge to see.
        if (faces(i).IsEmpty() || BRep_Tool::Degenerated(edge) ||
            BRep_Tool::IsClosed(edge, TopoDS::Face(faces(i).First())))
            continue;
        TopLoc_Location loc;
        const TopoDS_Face &face = TopoDS::Face(faces(i).First());
        Handle(Poly_Triangulation) t = BRep_Tool::Triangulation(face, loc);
        if (t.IsNull())
            continue;
        Handle(Poly_PolygonOnTriangulation) poly = BRep_Tool::PolygonOnTriangulation(edge, t, loc);
        if (poly.IsNull())
            continue;
        const gp_Trsf move = loc.Transformation();
        for (int k = 1; k <= poly->NbNodes(); k++) {
            gp_Pnt p = t->Node(poly->Nodes()(k)).Transformed(move);
            xyz.insert(xyz.end(), {p.X(), p.Y(), p.Z()});
        }
        start.push_back(uint32_t(xyz.size() / 3));
    }
    m->n_edges = start.size() - 1;
    m->n_edge_points = xyz.size() / 3;
    m->edge = copy_array(start);
    m->edge_points = copy_array(xyz);
}

void take_mesh(const TopoDS_Shape &shape, part *p)
{
    part_mesh *m = &p->mesh;
    std::vector<double> xyz;
    std::vector<uint32_t> tri, of;
    uint32_t face_index = 0;
    for (TopExp_Explorer ex(shape, TopAbs_FACE); ex.More(); ex.Next(), face_index++) {
        const TopoDS_Face &face = TopoDS::Face(ex.Current());
        TopLoc_Location loc;
        Handle(Poly_Triangulation) t = BRep_Tool::Triangulation(face, loc);
        if (t.IsNull())
            continue;
        const gp_Trsf move = loc.Transformation();
        uint32_t base = uint32_t(xyz.size() / 3);
        for (int i = 1; i <= t->NbNodes(); i++) {
            gp_Pnt v = t->Node(i).Transformed(move);
            xyz.insert(xyz.end(), {v.X(), v.Y(), v.Z()});
        }
        bool reversed = (face.Orientation() == TopAbs_REVERSED) != bool(move.IsNegative());
        for (int i = 1; i <= t->NbTriangles(); i++) {
            int a, b, c;
            t->Triangle(i).Get(a, b, c);
            if (reversed)
                std::swap(b, c);
            tri.insert(tri.end(), {base + uint32_t(a) - 1, base + uint32_t(b) - 1, base + uint32_t(c) - 1});
            of.push_back(face_index);
        }
    }
    m->n_points = xyz.size() / 3;
    m->n_triangles = of.size();
    m->points = copy_array(xyz);
    m->triangles = copy_array(tri);
    m->face = copy_array(of);

    // Area, volume (divergence theorem, from the first point) and box of the triangles.
    for (int k = 0; k < 3 && m->n_points; k++)
        p->box[k] = p->box[k + 3] = xyz[size_t(tri.empty() ? 0 : tri[0]) * 3 + size_t(k)];
    const double *o = xyz.data();
    for (size_t i = 0; i < m->n_triangles; i++) {
        double v[3][3], n[3];
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 3; k++) {
                double x = xyz[size_t(tri[3 * i + size_t(j)]) * 3 + size_t(k)];
                v[j][k] = x - o[k];
                p->box[k] = std::fmin(p->box[k], x);
                p->box[k + 3] = std::fmax(p->box[k + 3], x);
            }
        for (int k = 0; k < 3; k++) {
            int a = (k + 1) % 3, b = (k + 2) % 3;
            n[k] = (v[1][a] - v[0][a]) * (v[2][b] - v[0][b]) - (v[1][b] - v[0][b]) * (v[2][a] - v[0][a]);
        }
        p->mesh_area += std::sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]) / 2;
        p->mesh_volume += (v[0][0] * n[0] + v[0][1] * n[1] + v[0][2] * n[2]) / 6;
    }
}

uint32_t count(const TopoDS_Shape &shape, TopAbs_ShapeEnum type)
{
    TopTools_IndexedMapOfShape map;
    TopExp::MapShapes(shape, type, map);
    return uint32_t(map.Extent());
}

void take_counts(const TopoDS_Shape &shape, part *p)
{
    p->n_solids = count(shape, TopAbs_SOLID);
    p->n_faces = count(shape, TopAbs_FACE);
    p->n_edges = count(shape, TopAbs_EDGE);
    p->n_vertices = count(shape, TopAbs_VERTEX);
    TopTools_IndexedMapOfShape shells;
    TopExp::MapShapes(shape, TopAbs_SHELL, shells);
    p->n_shells = uint32_t(shells.Extent());
    for (int i = 1; i <= shells.Extent(); i++)
        p->n_closed_shells += BRep_Tool::IsClosed(shells(i));
    for (TopExp_Explorer ex(shape, TopAbs_SHELL, TopAbs_SOLID); ex.More(); ex.Next())
        p->n_loose_shells++;
    p->tolerance = ShapeAnalysis_ShapeTolerance().Tolerance(shape, 1);
}

// Names of the checks that a sub-shape fails, each once.
void add_statuses(const BRepCheck_Analyzer &an, const TopoDS_Shape &s, std::string *names)
{
    const Handle(BRepCheck_Result) &r = an.Result(s);
    if (r.IsNull())
        return;
    auto add = [names](const BRepCheck_ListOfStatus &list) {
        for (BRepCheck_ListIteratorOfListOfStatus it(list); it.More(); it.Next()) {
            if (it.Value() == BRepCheck_NoError)
                continue;
            std::ostringstream text;
            BRepCheck::Print(it.Value(), text);
            std::string name = text.str();
            name.erase(name.find_last_not_of(" \r\n") + 1);
            if (name.rfind("BRepCheck_", 0) == 0)
                name.erase(0, 10);
            if (names->find(name) == std::string::npos && names->size() < 500)
                *names += (names->empty() ? "" : ", ") + name;
        }
    };
    add(r->Status());
    for (r->InitContextIterator(); r->MoreShapeInContext(); r->NextShapeInContext())
        add(r->StatusOnShape());
}

void check(const TopoDS_Shape &shape, part *p)
{
    BRepCheck_Analyzer an(shape);
    std::string names;
    p->checked = true;
    p->valid = an.IsValid();
    if (!p->valid) {
        TopTools_IndexedMapOfShape all;
        TopExp::MapShapes(shape, all);
        for (int i = 1; i <= all.Extent(); i++)
            add_statuses(an, all(i), &names);
    }
    set_text(&p->invalid, names);
}

void measure(const TopoDS_Shape &shape, part *p)
{
    GProp_GProps volume, surface;
    BRepGProp::VolumeProperties(shape, volume);
    BRepGProp::SurfaceProperties(shape, surface);
    p->volume = volume.Mass();
    p->area = surface.Mass();
    bool first = true;
    for (TopExp_Explorer ex(shape, TopAbs_SOLID); ex.More(); ex.Next()) {
        double v = p->volume;
        if (p->n_solids > 1) {
            GProp_GProps one;
            BRepGProp::VolumeProperties(ex.Current(), one);
            v = one.Mass();
        }
        p->min_solid_volume = first || v < p->min_solid_volume ? v : p->min_solid_volume;
        first = false;
    }
    p->measured = true;
}

void box_of(const TopoDS_Shape &shape, part *p)
{
    Bnd_Box box;
    BRepBndLib::Add(shape, box, Standard_False);
    if (!box.IsVoid())
        box.Get(p->box[0], p->box[1], p->box[2], p->box[3], p->box[4], p->box[5]);
}

// One root by itself: its shape (null if none), and a record if wanted.
TopoDS_Shape transfer_one(STEPControl_Reader *reader, int root, const part_request *q, part_root *record)
{
    reader->ClearShapes();
    bool ok = reader->TransferOneRoot(root);
    TopoDS_Shape shape = reader->NbShapes() > 0 ? reader->Shape(1) : TopoDS_Shape();
    if (record) {
        record->transfer_ok = ok;
        record->null = shape.IsNull();
        if (!shape.IsNull()) {
            if (q->flags & PART_MESH)
                try {
                    make_mesh(shape, q);
                } catch (const Standard_OutOfMemory &) {
                    throw;
                } catch (const Standard_Failure &) { // a root without triangles, no more
                }
            record->n_triangles = count_triangles(shape);
            TopExp_Explorer solid(shape, TopAbs_SOLID), face(shape, TopAbs_FACE), edge(shape, TopAbs_EDGE);
            record->solid = solid.More() && face.More();
            record->curve = !face.More() && edge.More();
        }
    }
    return shape;
}

class Clock {
    double start_ = now_s();

public:
    double lap()
    {
        double t = now_s(), d = t - start_;
        start_ = t;
        return d;
    }
};

// Exceptions pass through.
int load(const char *name, const char *text, size_t n, const part_request *q, part *p)
{
    Clock clock;
    STEPControl_Reader reader;
    TextBuffer buffer(text, n);
    std::istream stream(&buffer);
    IFSelect_ReturnStatus status = reader.ReadStream(name, stream);
    p->read_s = clock.lap();
    if (status != IFSelect_RetDone)
        return fail(p, PART_READ_FAILED, "read_failed");
    p->n_roots = reader.NbRootsForTransfer();

    TopoDS_Shape shape;
    if (q->flags & (PART_EACH_ROOT | PART_FALLBACK)) {
        size_t room = p->n_roots > 0 ? size_t(p->n_roots) : 1;
        p->root = static_cast<part_root *>(xcalloc(room, sizeof *p->root));
    }
    if (q->root > 0) {
        shape = transfer_one(&reader, q->root, q, p->root);
        p->n_root = p->root ? 1 : 0;
        bool fall_back = (q->flags & PART_FALLBACK) && !p->root->n_triangles;
        for (int i = 1; i <= p->n_roots && (fall_back || (q->flags & PART_EACH_ROOT)); i++) {
            if (i == q->root)
                continue;
            TopoDS_Shape other = transfer_one(&reader, i, q, &p->root[p->n_root++]);
            if (fall_back && p->root[p->n_root - 1].n_triangles) {
                shape = other;
                fall_back = false;
            }
        }
    } else if (p->n_roots > 0) {
        for (int i = 1; i <= p->n_roots && (q->flags & PART_EACH_ROOT); i++)
            transfer_one(&reader, i, q, &p->root[p->n_root++]);
        reader.ClearShapes();
        p->n_transferred = reader.TransferRoots();
        shape = reader.OneShape();
    }
    p->transfer_s = clock.lap();
    if (p->n_roots <= 0)
        return fail(p, PART_NO_ROOTS, "no_roots");
    if (shape.IsNull())
        return fail(p, PART_NULL_SHAPE, "null_shape");

    if (q->flags & PART_CHECK) {
        check(shape, p);
        p->check_s = clock.lap();
    }
    take_counts(shape, p);
    if (q->flags & PART_PROPERTIES)
        measure(shape, p);
    box_of(shape, p);
    clock.lap();
    if (q->flags & PART_MESH) {
        if (!p->n_root) // else there is one, or cannot be
            make_mesh(shape, q);
        take_mesh(shape, p);
        if (q->flags & PART_EDGES)
            take_edges(shape, &p->mesh);
        p->mesh_s = clock.lap();
        if (!p->mesh.n_triangles)
            return fail(p, PART_NO_TRIANGLES, "no_triangles");
    }
    return ERR_OK;
}

} // namespace

void occ_quiet(void)
{
    static bool done;
    if (done)
        return;
    const Handle(Message_Messenger) &m = Message::DefaultMessenger();
    m->ChangePrinters().Clear();
    m->AddPrinter(new Listener());
    done = true;
}

int occ_load(const char *name, const char *text, size_t n, const part_request *q, part *out)
{
    memset(out, 0, sizeof *out);
    out->reason = xstrdup("");
    out->messages = xstrdup("");
    out->invalid = xstrdup("");
    struct file_map m = {};
    if (!text) {
        if (file_map(name, q->max_bytes ? q->max_bytes : size_t(256) << 20, &m) < 0)
            return fail(out, PART_NO_FILE, err_text());
        text = m.data;
        n = m.size;
    }
    int rc = ERR_OK;
    try {
        occ_quiet();
        messages.clear();
        rc = load(name, text, n, q, out);
    } catch (const Standard_OutOfMemory &) {
        rc = err_set(ERR_NOMEM, "%s: out of memory", name);
    } catch (const Standard_Failure &e) { // no std::exception before OpenCASCADE 8
        rc = fail(out, PART_EXCEPTION, failure_text(e));
    } catch (const std::bad_alloc &) {
        rc = err_set(ERR_NOMEM, "%s: out of memory", name);
    } catch (const std::exception &e) {
        rc = fail(out, PART_EXCEPTION, e.what());
    } catch (...) {
        rc = fail(out, PART_EXCEPTION, "an exception of unknown type");
    }
    set_text(&out->messages, messages);
    file_unmap(&m);
    return rc;
}

int occ_work(void *, const char *job, size_t n, buf *out)
{
    part_request q;
    const char *name, *text;
    size_t text_n;
    int rc = part_job_decode(job, n, &q, &name, &text, &text_n);
    if (rc < 0)
        return rc;
    part p;
    rc = occ_load(name, text, text_n, &q, &p);
    if (rc == ERR_OK)
        part_encode(&p, out);
    part_release(&p);
    return rc;
}
