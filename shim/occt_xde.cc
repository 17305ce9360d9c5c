// Units, products and colours of STEP files; see occt_xde.h.
#include "shim/occt_xde.h"

#include <cstdio>
#include <map>
#include <set>
#include <string>

#include <Quantity_ColorRGBA.hxx>
#include <STEPCAFControl_Reader.hxx>
#include <Standard_ErrorHandler.hxx>
#include <TColStd_SequenceOfAsciiString.hxx>
#include <TDF_LabelSequence.hxx>
#include <TDF_Tool.hxx>
#include <TDataStd_Name.hxx>
#include <TDocStd_Document.hxx>
#include <TopExp.hxx>
#include <TopTools_IndexedMapOfShape.hxx>
#include <TopoDS_Shape.hxx>
#include <XCAFDoc_ColorTool.hxx>
#include <XCAFDoc_DocumentTool.hxx>
#include <XCAFDoc_ShapeTool.hxx>

#include "shim/occt.h"

extern "C" {
#include "lib/mem.h"
}

namespace {

int count(const TopoDS_Shape &shape, TopAbs_ShapeEnum type)
{
    TopTools_IndexedMapOfShape map;
    TopExp::MapShapes(shape, type, map);
    return map.Extent();
}

std::string name_of(const TDF_Label &label)
{
    Handle(TDataStd_Name) name;
    return label.FindAttribute(TDataStd_Name::GetID(), name) ? TCollection_AsciiString(name->Get(), '?').ToCString() : "";
}

std::string rgba(const Quantity_ColorRGBA &c)
{
    char text[96];
    snprintf(text, sizeof text, "%.6g %.6g %.6g %.6g", c.GetRGB().Red(), c.GetRGB().Green(), c.GetRGB().Blue(), double(c.Alpha()));
    return text;
}

using Lines = std::multiset<std::string>;

void units(STEPCAFControl_Reader &reader, Lines *lines)
{
    TColStd_SequenceOfAsciiString length, angle, solid;
    reader.ChangeReader().FileUnits(length, angle, solid);
    std::set<std::string> seen; // how many contexts say so does not matter
    for (int i = 1; i <= length.Length(); i++)
        seen.insert(std::string("unit length ") + length(i).ToCString());
    for (int i = 1; i <= angle.Length(); i++)
        seen.insert(std::string("unit angle ") + angle(i).ToCString());
    for (int i = 1; i <= solid.Length(); i++)
        seen.insert(std::string("unit solid ") + solid(i).ToCString());
    lines->insert(seen.begin(), seen.end());
}

void colours_of(const TDF_Label &label, const Handle(XCAFDoc_ColorTool) &colours, Lines *lines)
{
    static const char *const kinds[] = {"compound", "compsolid", "solid", "shell", "face", "wire", "edge", "vertex", "shape"};
    static const char *const uses[] = {"generic", "surface", "curve"};
    TopoDS_Shape shape = XCAFDoc_ShapeTool::GetShape(label);
    for (int use = XCAFDoc_ColorGen; use <= XCAFDoc_ColorCurv; use++) {
        Quantity_ColorRGBA c;
        if (colours->GetColor(label, XCAFDoc_ColorType(use), c))
            lines->insert(std::string("colour ") + uses[use] + " of a " + (shape.IsNull() ? "label" : kinds[shape.ShapeType()]) + ": " + rgba(c));
    }
}

void describe(STEPCAFControl_Reader &reader, Lines *lines)
{
    Handle(TDocStd_Document) doc = new TDocStd_Document("XmlXCAF");
    units(reader, lines);
    if (!reader.Transfer(doc)) {
        lines->insert("nothing to transfer");
        return;
    }
    Handle(XCAFDoc_ShapeTool) shapes = XCAFDoc_DocumentTool::ShapeTool(doc->Main());
    Handle(XCAFDoc_ColorTool) colours = XCAFDoc_DocumentTool::ColorTool(doc->Main());
    TDF_LabelSequence all;
    shapes->GetShapes(all);
    for (int i = 1; i <= all.Length(); i++) {
        TopoDS_Shape s = XCAFDoc_ShapeTool::GetShape(all(i));
        TDF_LabelSequence parts;
        XCAFDoc_ShapeTool::GetComponents(all(i), parts);
        char text[128];
        snprintf(text, sizeof text, ": %d solids, %d faces, %d edges, %d vertices, %d components", count(s, TopAbs_SOLID),
                 count(s, TopAbs_FACE), count(s, TopAbs_EDGE), count(s, TopAbs_VERTEX), parts.Length());
        lines->insert("product " + name_of(all(i)) + text);
        colours_of(all(i), colours, lines);
        for (int k = 1; k <= parts.Length(); k++)
            colours_of(parts(k), colours, lines);
        TDF_LabelSequence subs;
        XCAFDoc_ShapeTool::GetSubShapes(all(i), subs);
        for (int k = 1; k <= subs.Length(); k++)
            colours_of(subs(k), colours, lines);
    }
}

} // namespace

int occ_describe(const char *path, buf *out)
{
    try {
        occ_quiet();
        STEPCAFControl_Reader reader;
        reader.SetColorMode(Standard_True);
        reader.SetNameMode(Standard_True);
        if (reader.ReadFile(path) != IFSelect_RetDone)
            return err_set(ERR_FORMAT, "%s: OpenCASCADE cannot read it", path);
        Lines lines;
        describe(reader, &lines);
        for (auto it = lines.begin(); it != lines.end(); it = lines.upper_bound(*it))
            buf_printf(out, "%s x %zu\n", it->c_str(), lines.count(*it));
        return ERR_OK;
    } catch (const Standard_Failure &e) { // no std::exception before OpenCASCADE 8
        return err_set(ERR_FORMAT, "%s: %s", path, e.DynamicType()->Name());
    } catch (const std::exception &e) {
        return err_set(ERR_FORMAT, "%s: %s", path, e.what());
    } catch (...) {
        return err_set(ERR_FORMAT, "%s: an exception of unknown type", path);
    }
}
